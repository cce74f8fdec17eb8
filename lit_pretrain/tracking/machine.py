"""What a run was made with: the state of the code, the versions, the machine."""

import os
import platform
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("lit-pretrain", "torch", "lightning", "mlflow", "datasets", "tokenizers", "numpy", "timm")


def git_state(directory: Path | None = None) -> dict[str, str]:
    """Commit, branch and whether tracked files were changed; empty without git or outside of a repository.

    Args:
        directory: Where to look; null for the working directory.
    """

    def ask(*words: str) -> str | None:
        try:
            answer = subprocess.run(
                ["git", *words], cwd=directory, capture_output=True, text=True, timeout=10, check=False
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return answer.stdout.strip() if answer.returncode == 0 else None

    commit = ask("rev-parse", "HEAD")
    if not commit:
        return {}
    changes = ask("status", "--porcelain", "--untracked-files=no")
    return {
        "git.commit": commit,
        "git.branch": ask("rev-parse", "--abbrev-ref", "HEAD") or "",
        "git.dirty": "unknown" if changes is None else str(bool(changes)).lower(),
        # The name under which MLflow's page shows it.
        "mlflow.source.git.commit": commit,
    }


@cache
def package_versions() -> dict[str, str]:
    """Versions of Python and of the packages that matter, as far as they are installed."""
    versions = {"versions.python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[f"versions.{package}"] = version(package)
        except PackageNotFoundError:
            continue
    return versions


def machine_description() -> dict[str, str]:
    """Processor, cores this process may use, memory, GPUs, system."""
    import torch

    description = {
        "machine.processor": processor_name(),
        "machine.cores": str(usable_cores()),
        "machine.threads": str(torch.get_num_threads()),
        "machine.system": f"{platform.system()} {platform.release()}",
    }
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        description["machine.memory_gib"] = f"{memory / 2**30:.1f}"
    except (ValueError, OSError, AttributeError):
        pass
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        description["machine.gpus"] = ", ".join(f"{names.count(name)} x {name}" for name in dict.fromkeys(names))
        description["versions.cuda"] = str(torch.version.cuda)
    return description


def processor_name() -> str:
    """The processor's name as its maker gives it, as far as the system tells."""
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def usable_cores() -> int:
    """Cores this process may use, which in a container or a job are fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
