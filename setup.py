"""The C code: the extension, on the stable ABI (one wheel for all Pythons), and the preload library."""

import os
import sys
from glob import glob
from typing import Any

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

CORE = ["architectures", "ggml_layout", "gguf_metadata", "rope_plan"]
MODULE = ["big_stack", "hook", "module", "py_hook", "py_metadata", "py_tokenize", "text_run"]
PRELOAD = "ropebend.libropebend_preload"


class BuildExt(build_ext):
    """The preload library is no Python module, so its file has no interpreter's tag."""

    def get_ext_filename(self, fullname: str) -> str:
        if fullname.endswith(PRELOAD.rpartition(".")[2]):
            return fullname.replace(".", os.sep) + ".so"
        return super().get_ext_filename(fullname)


def library(name: str, modules: list[str], **more: Any) -> Extension:
    return Extension(
        name,
        sources=[f"csrc/{module}.c" for module in modules],
        depends=sorted(glob("csrc/*.h")),
        include_dirs=["csrc"],
        extra_compile_args=["-std=c11", "-O2", "-fvisibility=hidden", "-Wall", "-Wextra"],
        **more,
    )


limited = [("Py_LIMITED_API", "0x030A0000")]  # Python 3.10, as requires-python says
extensions = [library("ropebend._native", [*CORE, *MODULE], define_macros=limited, py_limited_api=True)]
if sys.platform == "linux":  # LD_PRELOAD; macOS has two-level names and would need another way
    preload = [
        *CORE,
        "announce",
        "gguf_scan",
        "graph_owner",
        "loaded_libraries",
        "pointer_map",
        "preload",
        "scaled_file",
    ]
    extensions.append(library(PRELOAD, preload, libraries=["dl", "m", "pthread"]))
setup(
    ext_modules=extensions,
    cmdclass={"build_ext": BuildExt},
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
