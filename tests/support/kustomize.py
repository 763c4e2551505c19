"""What `kubectl apply -k` would send."""

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml


def render(kustomization: Path) -> list[dict[str, Any]]:
    """The objects that a kustomization makes; without kubectl, the test is skipped."""
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed: nothing renders the kustomizations")
    command = ["kubectl", "kustomize", str(kustomization)]
    return list(yaml.safe_load_all(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
