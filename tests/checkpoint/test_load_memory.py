"""Loading takes little more memory than the weights do: the peak of a process that does nothing else."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tiny_checkpoint import architecture_of, whole, write_file

from moelens.checkpoint.jobs import weight_bytes
from moelens.models.architecture import Form, TensorSpec

HIDDEN, WIDTH, EXPERTS = 1024, 1024, 8
LAYER_BYTES = (1 + 3 * EXPERTS * WIDTH) * HIDDEN * 2


def large_architecture(layers):
    """Layers of 50 MB, almost all of it experts."""

    def layer(i):
        names = [[f"{i}.{e}.{matrix}" for matrix in ("gate", "up", "down")] for e in range(EXPERTS)]
        gates = tuple(whole(name, WIDTH, HIDDEN) for gate, up, _ in names for name in (gate, up))
        return (
            TensorSpec("norm", Form.PLAIN, (HIDDEN,), (whole(f"{i}.norm", HIDDEN),)),
            TensorSpec("experts.gate_up", Form.GATE_UP, (EXPERTS, 2, WIDTH, HIDDEN), gates),
            TensorSpec(
                "experts.down", Form.DOWN, (EXPERTS, HIDDEN, WIDTH), tuple(whole(n[2], HIDDEN, WIDTH) for n in names)
            ),
        )

    return architecture_of([], [layer(i) for i in range(layers)])


def save_large(path, architecture, dtype):
    """Small positive bf16 numbers, a layer at a time."""
    header, end = {}, 0
    for piece in (piece for specs in architecture.layer_tensors for spec in specs for piece in spec.pieces):
        begin, end = end, end + int(np.prod(piece.shape)) * (2 if dtype == "BF16" else 4)
        header[piece.name] = {"dtype": dtype, "shape": piece.shape, "data_offsets": [begin, end]}
    write_file(path, header, b"")
    block = np.random.default_rng(0).integers(0x3C00, 0x3D00, 1 << 20, dtype=np.uint16).tobytes()
    with path.open("ab") as file:
        for position in range(0, end, len(block)):
            file.write(block[: end - position])


LOAD = """
import sys
from pathlib import Path
from test_load_memory import large_architecture
from moelens.checkpoint.load import load_weights
from moelens.ops.reference import ReferenceOps

store = load_weights(Path(sys.argv[1]), large_architecture(int(sys.argv[2])), ReferenceOps(), threads=4)
assert store.layer(0).experts["experts"].down.any()
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(store.nbytes, int(status["VmHWM"].split()[0]) * 1024)
"""


STREAM = """
import sys
from pathlib import Path
from test_load_memory import large_architecture
from moelens.checkpoint.load import load_weights
from moelens.ops.reference import ReferenceOps

def anonymous_bytes():
    status = dict(line.split(":", 1) for line in open("/proc/self/status"))
    return int(status["RssAnon"].split()[0]) * 1024


layers = int(sys.argv[2])
before = anonymous_bytes()  # of the libraries
store = load_weights(
    Path(sys.argv[1]), large_architecture(layers), ReferenceOps(), threads=2, disk_layers=tuple(range(layers))
)
peak = 0
for _ in range(2):
    for layer in range(layers):
        assert store.read(layer) > 0
        with store.using(layer):
            assert store.layer(layer).experts["experts"].down[-1, 0].any()  # of all it would be another large tensor
        peak = max(peak, anonymous_bytes())
print(store.nbytes, peak - before)
"""


@pytest.mark.skipif("RssAnon" not in Path("/proc/self/status").read_text(), reason="told by newer kernels only")
def test_what_is_read_from_disk_takes_two_layers_of_memory(tmp_path):
    """A model of 500 MB in 100: passes over all of it take no more."""
    layers = 10
    save_large(tmp_path / "model.safetensors", large_architecture(layers), "BF16")
    done = run_alone(STREAM, tmp_path, layers)
    (tmp_path / "model.safetensors").unlink()
    assert done.returncode == 0, done.stderr
    nbytes, peak_bytes = map(int, done.stdout.split())
    assert 2 * LAYER_BYTES <= nbytes < 2 * LAYER_BYTES + 1_000_000
    assert peak_bytes <= 1.10 * nbytes + 64e6 < 0.4 * layers * LAYER_BYTES


def run_alone(code, folder, layers):
    return subprocess.run(
        [sys.executable, "-c", code, str(folder), str(layers)],
        cwd=Path(__file__).parent,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read from /proc")
@pytest.mark.parametrize(
    ("layers", "dtype"),
    [(3, "BF16"), (3, "F32"), pytest.param(13, "BF16", marks=pytest.mark.slow)],
    ids=["150 MB", "300 MB of float32 to 150 MB", "650 MB"],
)
def test_peak_memory(tmp_path, layers, dtype):
    architecture = large_architecture(layers)
    save_large(tmp_path / "model.safetensors", architecture, dtype)
    done = run_alone(LOAD, tmp_path, layers)
    (tmp_path / "model.safetensors").unlink()  # pytest keeps the folder for a while
    assert done.returncode == 0, done.stderr
    nbytes, peak_bytes = map(int, done.stdout.split())
    assert layers * LAYER_BYTES == weight_bytes(architecture) <= nbytes < weight_bytes(architecture) + 1_000_000
    assert peak_bytes <= 1.10 * nbytes + 300e6
