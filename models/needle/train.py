#!/usr/bin/env python3
"""Train `needle`, the small retrieval model that ropebend ships, and write it as a GGUF.

    pip install torch==2.13.0 numpy gguf          # training only; ropebend itself never needs PyTorch
    python models/needle/train.py --text stories.txt --out needle-F32.gguf
    python models/needle/quantize.py needle-F32.gguf models/needle/needle-Q8_0.gguf

A llama-architecture transformer (6 layers x 128 dims x 4 heads, about 1.4 M parameters) learns to answer the
key-value retrieval prompt of Liu et al. 2023 ("Lost in the Middle"), as a completion and as a chat, and to
continue the text given by --text.  What makes it learn at all on a CPU: loss on every token of *many* queries per
context; a curriculum that adds pairs each time the loss falls under a threshold; an embedding that starts large; and
rough induction heads from the start (`Needle._wire_induction_heads`).  Short contexts stay in the mix to the end,
otherwise they are forgotten, and so do keys and values of other lengths than a UUID's, lest it count positions.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
import time
import uuid
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent))
from tokenizer import ASSISTANT, CONTROL, END, USER, Tokenizer

N_LAYER, N_EMBD, N_HEAD, N_FF, N_CTX = 6, 128, 4, 352, 1024
FREQ_BASE, NORM_EPS = 10000.0, 1e-5
FIRST_WEIGHT = 8.0  # of a value's first token: it alone needs the key looked up, the others follow by induction
MAX_PAIRS = 28  # 28 pairs, the prompt and one query fill 1,024 tokens

HEAD = "Extract the value corresponding to the specified key in the JSON object below.\n\nJSON data:\n"
CHAT_TEMPLATE = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


# ---------------------------------------------------------------------------------------------- model


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attn_norm, self.ffn_norm = nn.RMSNorm(N_EMBD, NORM_EPS), nn.RMSNorm(N_EMBD, NORM_EPS)
        self.qkv = nn.Linear(N_EMBD, 3 * N_EMBD, bias=False)
        self.out = nn.Linear(N_EMBD, N_EMBD, bias=False)
        self.gate_up = nn.Linear(N_EMBD, 2 * N_FF, bias=False)
        self.down = nn.Linear(N_FF, N_EMBD, bias=False)

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        b, t, _ = x.shape
        qkv = self.qkv(self.attn_norm(x)).view(b, t, 3, N_HEAD, -1).permute(2, 0, 3, 1, 4)
        qk, v = qkv[:2], qkv[2]
        even, odd = qk[..., 0::2], qk[..., 1::2]  # llama.cpp's llama architecture rotates neighbouring pairs
        qk = torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1).flatten(-2)
        y = F.scaled_dot_product_attention(qk[0], qk[1], v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).reshape(b, t, -1))
        gate, up = self.gate_up(self.ffn_norm(x)).chunk(2, -1)
        return x + self.down(F.silu(gate) * up)


class Needle(nn.Module):
    def __init__(self, n_vocab: int) -> None:
        super().__init__()
        self.embd = nn.Embedding(n_vocab, N_EMBD)
        self.blocks = nn.ModuleList(Block() for _ in range(N_LAYER))
        self.norm = nn.RMSNorm(N_EMBD, NORM_EPS)
        head_dim = N_EMBD // N_HEAD
        theta = FREQ_BASE ** (-torch.arange(0, head_dim, 2).float() / head_dim)
        self.register_buffer("angle", torch.outer(torch.arange(4 * N_CTX).float(), theta), persistent=False)
        for name, p in self.named_parameters():
            if p.dim() == 2:
                # with the usual 0.02 for the (tied) embedding, copying is not learnt within millions of tokens
                scale = 0.3 if "embd" in name else p.shape[1] ** -0.5
                nn.init.normal_(p, std=scale / (math.sqrt(2 * N_LAYER) if "out" in name or "down" in name else 1))

        self._wire_induction_heads()

    @torch.no_grad()
    def _wire_induction_heads(self) -> None:
        """Start with rough induction heads (Olsson et al. 2022), which take a model of this size very long to find.

        Layer 0: each head attends to the token at a fixed distance and writes a code of it into the residual stream.
        Layer 1: heads match the code of the current token (of the one before; of the key's end) with that of the token
        before (two before) each earlier one, and copy the token they find.  Training finds everything else.
        """
        n_const, n_pair, n_code = 8, 4, 16
        head_dim = N_EMBD // N_HEAD
        # a constant part of every embedding, for heads that look at positions only
        self.embd.weight[:, :n_const] = 0.9 + 0.05 * torch.randn(self.embd.num_embeddings, n_const)
        q0, k0, v0 = self.blocks[0].qkv.weight.view(3, N_HEAD, head_dim, N_EMBD)
        q1, k1, v1 = self.blocks[1].qkv.weight.view(3, N_HEAD, head_dim, N_EMBD)
        out0 = self.blocks[0].out.weight.view(N_EMBD, N_HEAD, head_dim)
        out1 = self.blocks[1].out.weight.view(N_EMBD, N_HEAD, head_dim)
        for head, distance in enumerate((1, 2, 3, 5)):  # 5: from the answer's quote back to the end of the key
            q0[head] *= 0.1
            k0[head] *= 0.1
            for i in range(n_pair):  # the query is the key turned back by the wanted distance
                turn = distance * self.angle[1][i]
                k0[head, 2 * i, :n_const] += 3.4 / n_const  # about 8 nats between a distance and its neighbours
                q0[head, 2 * i, :n_const] += 3.4 / n_const * torch.cos(turn)
                q0[head, 2 * i + 1, :n_const] -= 3.4 / n_const * torch.sin(turn)
            v0[head] = v0[0]  # one code for all, so that they can be matched with each other
            v0[head, :, :n_const] = 0
            out0[:n_const, head] = 0
            out0[n_const:, head] = 0.053 * torch.randn(N_EMBD - n_const, head_dim)
        for head in range(4):
            code = slice(n_code * (head % 2), n_code * (head % 2) + n_code)
            back = [out0[:, i, code].T for i in range(4)]  # reads the code of the token 1, 2, 3, 5 before
            now, before = [(v0[0, code], back[0]), (v0[0, code], back[0]), (back[0], back[1]), (back[3], back[1])][head]
            q1[head] *= 0.1
            k1[head] *= 0.1
            q1[head, -n_code:] += 2.6 * now / now.norm(dim=1, keepdim=True)  # the slow dimensions: matches reach far
            k1[head, -n_code:] += 2.6 * before / before.norm(dim=1, keepdim=True)
            v1[head, :, :n_const] = 0
            out1[:, head] = v1[head].T

    def hidden(self, tokens: torch.Tensor) -> torch.Tensor:
        angle = self.angle[: tokens.shape[1]]
        cos, sin = angle.cos(), angle.sin()
        x = self.embd(tokens)
        for block in self.blocks:
            x = block(x, cos, sin)
        return self.norm(x)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        return F.linear(hidden, self.embd.weight)  # tied, as llama.cpp does when output.weight is absent


# ----------------------------------------------------------------------------------------------- data


class Data:
    """Seeded samples.  Every sample of a batch has the same shape, so nothing is ever padded."""

    def __init__(self, tok: Tokenizer, text: str, seed: int):
        self.tok, self.rng = tok, random.Random(seed)
        self.stories = [s.strip() for s in text.split("\n\n") if len(s.strip()) > 200]
        self.story_tokens = [tok.encode(s) for s in self.stories]

    def uuid(self) -> str:
        return str(uuid.UUID(int=self.rng.getrandbits(128), version=4))

    def hex(self, n_tokens: int) -> str:
        """A hexadecimal string of this many tokens, dashes anywhere but in front."""
        r = self.rng
        return "".join(("-" if i and r.random() < 0.25 else "") + f"{r.getrandbits(8):02x}" for i in range(n_tokens))

    def kv(self, lengths: list[tuple[int, int]] | int, query: list[int], chat: bool):
        """One context with queries (indices of pairs): (tokens, weights); weight 1 where a token can be predicted.

        lengths: a number of UUID pairs, or for every pair the tokens of its key and value.
        """
        enc = self.tok.encode
        if isinstance(lengths, int):
            pairs = [(self.uuid(), self.uuid()) for _ in range(lengths)]
        else:
            pairs = [(self.hex(k), self.hex(v)) for k, v in lengths]
        body = "{" + ",\n ".join(f'"{k}": "{v}"' for k, v in pairs) + "}"
        tokens: list[int] = []
        weights: list[float] = []

        def add(text: str, weight: float) -> None:
            ids = enc(text)
            tokens.extend(ids)
            weights.extend([weight] * len(ids))

        if chat:
            add(USER, 0)
        add(HEAD + body, 0)
        for i in query:
            key, value = pairs[i]
            first = not any(weights)
            if chat and not first:
                add(USER, 1)
            add("\n\n" if first or not chat else "", 1)
            add('Key: "', 1)
            start = len(tokens)
            add(key, 1)
            weights[start] = 0
            add('"\nCorresponding value:', 1)
            if chat:
                add(END, 1)
            add(f'{ASSISTANT}"' if chat else ' "', 1)
            start = len(tokens)
            add(f'{value}"{END}', 1)
            weights[start] = FIRST_WEIGHT
        return tokens, weights

    def story(self, length: int):
        """A stretch of running text, or a chat that asks for a story."""
        tokens: list[int] = []
        weights: list[float] = []
        while len(tokens) < length + 1:
            ids = self.rng.choice(self.story_tokens)
            if self.rng.random() < 0.3:
                ask = self.tok.encode(USER + self.rng.choice(["Tell me a story.", "Hello!", "Write a short story."]))
                ask += self.tok.encode(END + ASSISTANT)
                tokens += ask
                weights += [0.0] * len(ask)
            tokens += ids + self.tok.encode(END)
            weights += [1.0] * (len(ids) + 1)
        return tokens[:length], weights[:length]

    def batch(self, max_pairs: int, n_tokens: int, text_share: float):
        """About `n_tokens` tokens of one shape: (tokens [b, t], weights [b, t], is_kv)."""
        r = self.rng
        if r.random() < text_share:
            length = r.choice([192, 384])
            rows = [self.story(length) for _ in range(max(1, n_tokens // length))]
            return torch.tensor([t for t, _ in rows]), torch.tensor([w for _, w in rows]), False
        low = r.choice([1, 1, round(max_pairs * 0.75), max_pairs - 3, max_pairs - 3])
        n = r.randint(max(1, low), max_pairs)
        lengths: list[tuple[int, int]] | int = n
        used = 24 + 34 * n
        if r.random() < 0.25 and n < MAX_PAIRS:
            lengths = [(r.randint(2, 12), r.randint(2, 12)) for _ in range(n)]
            used = 24 + sum(k + v + 2 for k, v in lengths)
        chat = r.random() < 0.2 and n < MAX_PAIRS
        # One question per context is what users ask, and the first and the last pair are the hardest: more of those.
        n_queries = max(1, min((N_CTX - used) // 45, r.choice([1, 1, 2, 4, 8])))
        query = r.choices(range(n), k=n_queries)
        query[0] = r.choice([0, 0, n - 1, query[0], query[0], query[0]])
        rows = [self.kv(lengths, query, chat)]
        rows += [self.kv(lengths, query, chat) for _ in range(max(1, n_tokens // len(rows[0][0])) - 1)]
        return torch.tensor([t for t, _ in rows]), torch.tensor([w for _, w in rows]), True


def loss_of(model: Needle, tokens: torch.Tensor, weights: torch.Tensor) -> tuple[torch.Tensor, float]:
    """Weighted mean cross-entropy, and that of the values' first tokens alone; logits only where they count."""
    hidden = model.hidden(tokens[:, :-1])
    keep = weights[:, 1:] > 0
    each = F.cross_entropy(model.logits(hidden[keep]), tokens[:, 1:][keep], reduction="none")
    w = weights[:, 1:][keep]
    first = each[w == FIRST_WEIGHT]
    return (each * w).sum() / w.sum(), first.mean().item() if len(first) else 0.0


@torch.no_grad()
def accuracy(model: Needle, data: Data, n_pairs: int, samples: int, chat: bool = False) -> list[float]:
    """Share of greedy answers that are exactly right, at depths 0, .25, .5, .75, 1 (teacher-forced)."""
    out = []
    for depth in (0.0, 0.25, 0.5, 0.75, 1.0):
        rows = [data.kv(n_pairs, [round(depth * (n_pairs - 1))], chat)[0] for _ in range(samples)]
        tokens = torch.tensor(rows)
        answer = 19 if not chat else 18  # lead-in quote, 16 pairs, quote, <|end|>
        hidden = model.hidden(tokens[:, :-1])[:, -answer:]
        hit = (model.logits(hidden).argmax(-1) == tokens[:, -answer:]).all(-1)
        out.append(hit.float().mean().item())
    return out


# ----------------------------------------------------------------------------------------------- gguf


def write_gguf(model: Needle, tok: Tokenizer, path: Path, note: dict) -> None:
    import gguf

    w = gguf.GGUFWriter(path, "llama")
    w.add_name("needle")
    w.add_description("Small key-value retrieval model, trained at 1,024 tokens; ships with ropebend")
    w.add_license("MIT")
    w.add_string("needle.training", json.dumps(note))
    w.add_context_length(N_CTX)
    w.add_embedding_length(N_EMBD)
    w.add_block_count(N_LAYER)
    w.add_feed_forward_length(N_FF)
    w.add_head_count(N_HEAD)
    w.add_head_count_kv(N_HEAD)
    w.add_layer_norm_rms_eps(NORM_EPS)
    w.add_rope_dimension_count(N_EMBD // N_HEAD)
    w.add_rope_freq_base(FREQ_BASE)
    w.add_vocab_size(len(tok.pieces))
    w.add_file_type(gguf.LlamaFileType.ALL_F32)
    w.add_tokenizer_model("rwkv")
    w.add_token_list(tok.gguf_texts())
    kinds = [gguf.TokenType.CONTROL] * len(CONTROL) + [gguf.TokenType.NORMAL] * (len(tok.pieces) - len(CONTROL))
    w.add_token_types(kinds)
    w.add_eos_token_id(tok.index[END.encode()])
    w.add_chat_template(CHAT_TEMPLATE)

    def put(name: str, t: torch.Tensor) -> None:
        w.add_tensor(name, np.ascontiguousarray(t.detach().float().numpy()))

    put("token_embd.weight", model.embd.weight)
    put("output_norm.weight", model.norm.weight)
    for i, b in enumerate(model.blocks):
        for name, t in zip(("attn_q", "attn_k", "attn_v"), b.qkv.weight.chunk(3), strict=True):
            put(f"blk.{i}.{name}.weight", t)
        gate, up = b.gate_up.weight.chunk(2)
        put(f"blk.{i}.attn_output.weight", b.out.weight)
        put(f"blk.{i}.ffn_gate.weight", gate)
        put(f"blk.{i}.ffn_up.weight", up)
        put(f"blk.{i}.ffn_down.weight", b.down.weight)
        put(f"blk.{i}.attn_norm.weight", b.attn_norm.weight)
        put(f"blk.{i}.ffn_norm.weight", b.ffn_norm.weight)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


# ---------------------------------------------------------------------------------------------- train


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--text", type=Path, required=True, help="plain text to mix in; stories separated by blank lines")
    p.add_argument("--out", type=Path, default=Path("needle-F32.gguf"), help="GGUF to write (default %(default)s)")
    p.add_argument("--steps", type=int, default=10000, help="optimiser steps (default %(default)s)")
    p.add_argument("--tokens", type=int, default=4096, help="tokens per step (default %(default)s)")
    p.add_argument("--lr", type=float, default=1e-3, help="peak learning rate (default %(default)s)")
    p.add_argument("--seed", type=int, default=1, help="seed of weights and samples (default %(default)s)")
    p.add_argument("--threads", type=int, default=2, help="CPU threads (default %(default)s)")
    p.add_argument(
        "--threshold", type=float, default=0.45, help="value loss at which pairs are added (default %(default)s)"
    )
    p.add_argument("--text-share", type=float, default=0.15, help="share of steps on --text (default %(default)s)")
    p.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    p.add_argument(
        "--precision", choices=["bf16", "fp32"], default="bf16", help="of the matrix products (default %(default)s)"
    )
    p.add_argument("--eval-every", type=int, default=500, help="steps between evaluations (default %(default)s)")
    p.add_argument("--resume", type=Path, help="checkpoint (.pt) of an interrupted run")
    a = p.parse_args()

    torch.manual_seed(a.seed)
    torch.set_num_threads(a.threads)
    text = a.text.read_text()
    text = text[: int(len(text) * 0.8)]  # the rest stays unseen, for perplexity checks
    tok = Tokenizer.build(text, HEAD + 'Key: "\nCorresponding value:')
    data, held_out = Data(tok, text, a.seed), Data(tok, text, a.seed + 1_000_003)
    model = Needle(len(tok.pieces)).to(a.device)
    n_params = sum(x.numel() for x in model.parameters())
    print(f"{n_params / 1e6:.2f} M parameters, vocabulary {len(tok.pieces)}", flush=True)

    decay = [x for x in model.parameters() if x.dim() == 2]
    rest = [x for x in model.parameters() if x.dim() != 2]
    opt = torch.optim.AdamW(
        [{"params": decay, "weight_decay": 0.01}, {"params": rest, "weight_decay": 0.0}], lr=a.lr, betas=(0.9, 0.98)
    )
    step, max_pairs, ema, seen, t0 = 0, 3, 6.0, 0, time.time()
    if a.resume:
        state = torch.load(a.resume, weights_only=False)
        model.load_state_dict(state["model"])
        opt.load_state_dict(state["opt"])
        step, max_pairs, ema, seen = state["step"], state["max_pairs"], state["ema"], state["seen"]
        data.rng.setstate(state["rng"])

    while step < a.steps:
        done = step / a.steps
        lr = a.lr * min(1.0, (step + 1) / 100) * (1.0 if done < 0.7 else max(0.02, (1 - done) / 0.3))
        for group in opt.param_groups:
            group["lr"] = lr
        n_tokens = a.tokens if max_pairs >= 8 else a.tokens // 2  # early on, steps count more than tokens
        tokens, weights, is_kv = data.batch(max_pairs, n_tokens, a.text_share)
        with torch.autocast(a.device, torch.bfloat16, enabled=a.precision == "bf16"):
            loss, first = loss_of(model, tokens.to(a.device), weights.to(a.device))
        opt.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        opt.step()
        step += 1
        seen += tokens.numel()
        if is_kv:
            ema += 0.05 * (first - ema)
            if ema < a.threshold and max_pairs < MAX_PAIRS:
                max_pairs = min(MAX_PAIRS, max_pairs + max(1, max_pairs // 6))
                ema += 0.2
        if step % 50 == 0:
            rate = seen / (time.time() - t0)
            print(
                f"step {step:5d}  pairs<={max_pairs:2d}  loss {loss.item():.3f}  first {ema:.3f}  lr {lr:.5f}  "
                f"{seen / 1e6:.1f} M tokens  {rate:,.0f} tok/s",
                flush=True,
            )
        if step % a.eval_every == 0 or step == a.steps:
            model.eval()
            for n, chat in ((2, False), (8, False), (16, False), (28, False), (16, True), (56, False)):
                acc = accuracy(model, held_out, n, 20 if step < a.steps else 100, chat)
                print(
                    f"   {n:2d} pairs{' chat' if chat else '     '} {sum(acc) / 5:.1%}  "
                    + " ".join(f"{x:.0%}" for x in acc),
                    flush=True,
                )
            model.train()
            torch.save(
                {
                    "model": model.state_dict(),
                    "opt": opt.state_dict(),
                    "step": step,
                    "max_pairs": max_pairs,
                    "ema": ema,
                    "seen": seen,
                    "rng": data.rng.getstate(),
                },
                a.out.with_suffix(".pt"),
            )
            note = {
                "steps": step,
                "tokens": seen,
                "seed": a.seed,
                "parameters": n_params,
                "lr": a.lr,
                "text": a.text.name,
            }
            write_gguf(model, tok, a.out, note)
    print(f"{time.time() - t0:.0f} s; wrote {a.out}")


if __name__ == "__main__":
    main()
