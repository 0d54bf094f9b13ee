"""What a job will do or did, as lines for people and as one JSON object for scripts."""

from __future__ import annotations

from collections import Counter
from typing import Any

from ropebend.convert.job import Job, Outcome
from ropebend.scaling import gguf_keys
from ropebend.shell import command


def facts(job: Job, outcome: Outcome | None) -> dict[str, Any]:
    """The JSON object of `--json`; see docs/format.md.  outcome: None for a dry run."""
    rewrite, scaling = job.rewrite, job.rewrite.scaling
    return {
        "ok": True,
        "dry_run": outcome is None,
        "action": _planned(job) if outcome is None else outcome.how,
        "input": str(rewrite.source.path),
        "output": str(job.target.path),
        "size": rewrite.source.size if job.edit else rewrite.size,
        "bytes_free": job.free,
        "bytes_needed": job.needed,
        "bytes_shared": outcome.shared if outcome else None,
        "verified": outcome.verified if outcome else None,
        "layer_scale": list(scaling.layer_scale) if scaling else None,
        "layer_attn_factor": list(scaling.layer_attn_factor) if scaling else None,
        "plans": [*(p.up_to for p in scaling.shorter), scaling.up_to] if scaling else None,
        "method": scaling.rope.method if scaling else None,
        "factor": scaling.rope.factor if scaling else None,
        "added": list(rewrite.added),
        "removed": [k for k in rewrite.replaced if k not in rewrite.added],
        "room": rewrite.room,
        "warnings": job.warnings,
        "parts": dict(outcome.parts if outcome else Counter(job.shards.value for p in job.parts if not p.there)),
    }


def planned(job: Job) -> list[str]:
    """The lines of a dry run."""
    rewrite = job.rewrite
    if job.edit is not None and job.edit.commit is None:
        return [_unchanged(job), "dry run: nothing was written"]
    if job.edit is not None:
        lines = [f"would change {job.target.path} in place: the new keys fit, nothing else is written"]
    else:
        lines = [f"would write {job.target.path}: {rewrite.size:,} bytes ({job.free:,} free)"]
        if job.needed < rewrite.size:
            lines.append(f"  shares the tensor data with the model: takes {job.needed:,} bytes of the disk")
        if rewrite.scaling and rewrite.room:
            lines.append(f"  with {rewrite.room:,} bytes of room, so that --in-place can change the scales later")
    lines += [f"  {part.target}: {'is there' if part.there else job.shards.value}" for part in job.parts]
    lines += [f"  {'replace' if key in rewrite.added else 'remove'} {key}" for key in rewrite.replaced]
    values = rewrite.scaling.to_metadata() if rewrite.scaling else {}
    for key, pair in rewrite.added.items():
        text = str(values[key])
        lines.append(f"  {key}, {len(pair):,} bytes: {text if len(text) <= 200 else text[:200] + '…'}")
    return [*lines, "dry run: nothing was written"]


def done(job: Job, outcome: Outcome) -> list[str]:
    """What to tell the user at the end."""
    rewrite, scaling, path = job.rewrite, job.rewrite.scaling, job.target.path
    if outcome.how == "unchanged":
        return [_unchanged(job)]
    if scaling is None:
        what = f"removed {len(rewrite.replaced)} {gguf_keys.PREFIX.rstrip('.')} keys"
    else:
        what = f"{scaling.n_layer} layers, {scaling}"
        if rewrite.replaced:
            what += " (replaced the scales it carried)"
    if outcome.how == "edited":
        lines = [f"{path}: {what}; changed in place, no tensor was touched"]
    else:
        checked = "verified" if outcome.verified else "not verified (--no-verify)"
        lines = [f"{path}: {what}; {rewrite.size:,} bytes, {checked}"]
        if outcome.shared:
            lines.append(f"It shares {outcome.shared:,} bytes with the model, so it takes little of the disk.")
        if scaling is not None and rewrite.room:
            lines.append(
                f"{rewrite.room:,} bytes of room: --in-place changes these scales without a rewrite from now on."
            )
        lines += [_parts(how, n) for how, n in outcome.parts.items()]
        if job.target.in_place and rewrite.source.status.st_nlink > 1:
            lines.append("The file had other hard links; those names still hold the old file.")
    if scaling is not None:
        lines += [f"Next:  {command('ropebend', 'show', path)}", f"       {command('ropebend', 'serve', path)}"]
    return lines


def _planned(job: Job) -> str:
    if job.edit is None:
        return "written"
    return "edited" if job.edit.commit else "unchanged"


def _unchanged(job: Job) -> str:
    what = "carries these scales already" if job.rewrite.scaling else "carries no ropebend keys, nothing to remove"
    return f"{job.target.path}: {what}; left as it is"


def _parts(how: str, n: int) -> str:
    verb = {"link": "hard-linked", "symlink": "linked", "copy": "copied"}[how]
    return f"{n} other part{'s' if n > 1 else ''} of the model {verb} beside it."
