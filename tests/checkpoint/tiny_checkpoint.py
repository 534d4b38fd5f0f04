"""A small architecture with a tensor of every form, ops that store in panels, and the files to load it from."""

import json
import math

import torch

from moelens.models.architecture import Architecture, Form, Piece, TensorSpec
from moelens.models.config import GQA, LayerConfig, ModelConfig, MoEFFN, Rope

HIDDEN, EXPERTS, WIDTH, VOCAB, LAYERS = 40, 3, 24, 70, 2
NAMES = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32", torch.uint8: "U8", torch.int32: "I32"}


class PanelOps:
    """Stores matrices in panels of 32 rows, column by column; so what is stored differs from what is in the file."""

    def matrix_shape(self, rows, columns, dtype):
        return (-(-rows // 32), columns, 32)

    def gate_up_shape(self, width, columns, dtype):
        return (2, *self.matrix_shape(width, columns, dtype))

    def down_shape(self, rows, width, dtype):
        return self.matrix_shape(rows, width, dtype)

    def pack_matrix(self, source, storage, first_row=0):
        assert first_row % 32 == 0 and source.dtype == storage.dtype
        for row in range(0, source.shape[0], 32):
            panel = source[row : row + 32]
            storage[(first_row + row) // 32, :, : panel.shape[0]] = panel.t()

    def pack_gate_up(self, gate, up, storage):
        self.pack_matrix(gate, storage[0])
        self.pack_matrix(up, storage[1])

    def pack_down(self, source, storage):
        self.pack_matrix(source, storage)


def unpack(storage, rows):
    """What was packed: [rows, columns]."""
    return storage.transpose(-1, -2).reshape(-1, storage.shape[-2])[:rows]


def whole(name, *shape, **options):
    return Piece(name, shape, **options)


def layer_specs(i):
    a, m = f"layers.{i}.attention", f"layers.{i}.experts"
    experts = [(f"{m}.{e}.gate", f"{m}.{e}.up", f"{m}.{e}.down") for e in range(EXPERTS)]
    return (
        TensorSpec("norm", Form.PLAIN, (HIDDEN,), (whole(f"layers.{i}.norm.weight", HIDDEN),)),
        TensorSpec("qkv", Form.MATRIX, (52, HIDDEN), tuple(whole(f"{a}.{x}.weight", n, HIDDEN) for x, n in QKV)),
        TensorSpec("qkv_bias", Form.PLAIN, (52,), tuple(whole(f"{a}.{x}.bias", n) for x, n in QKV)),
        TensorSpec(
            "experts.gate_up",
            Form.GATE_UP,
            (EXPERTS, 2, WIDTH, HIDDEN),
            tuple(whole(name, WIDTH, HIDDEN) for gate, up, _ in experts for name in (gate, up)),
        ),
        TensorSpec(
            "experts.down",
            Form.DOWN,
            (EXPERTS, HIDDEN, WIDTH),
            tuple(whole(down, HIDDEN, WIDTH) for _, _, down in experts),
        ),
    )


QKV = (("q", 36), ("k", 8), ("v", 8))


def resident_specs():
    return (
        TensorSpec("embedding", Form.PLAIN, (VOCAB, HIDDEN), (whole("embed.weight", VOCAB, HIDDEN),)),
        TensorSpec("head", Form.MATRIX, (VOCAB, HIDDEN), (whole("embed.weight", VOCAB, HIDDEN),)),
    )


def unused(*args):
    raise NotImplementedError


def architecture_of(resident, layers, dtype=torch.bfloat16, ignored=()):
    attention = GQA(4, 1, 8, 1.0, Rope((1.0,)))
    config = ModelConfig(
        "tiny",
        HIDDEN,
        VOCAB,
        tuple(LayerConfig(attention, MoEFFN(EXPERTS, 2, WIDTH)) for _ in layers),
        dtype,
        64,
        True,
    )
    return Architecture(config, tuple(resident), tuple(layers), unused, unused, unused, unused, ignored)


def tiny_architecture(dtype=torch.bfloat16, **options):
    return architecture_of(resident_specs(), [layer_specs(i) for i in range(LAYERS)], dtype, **options)


def tensors_for(architecture, dtype=torch.bfloat16, seed=0):
    """A random tensor for every name that the architecture reads."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for specs in (architecture.resident_tensors, *architecture.layer_tensors):
        for piece in (piece for spec in specs for piece in spec.pieces):
            if piece.name not in tensors:
                tensors[piece.name] = torch.randn(piece.shape, generator=generator).to(dtype)
    return tensors


def header_and_data(tensors):
    header, data = {}, b""
    for name, tensor in tensors.items():
        content = tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""
        offsets = [len(data), len(data) + len(content)]
        header[name] = {"dtype": NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": offsets}
        data += content
    return header, data


def write_file(path, header, data):
    """`header` as JSON, or as the bytes it is."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def save(path, tensors):
    write_file(path, *header_and_data(tensors))


def save_sharded(folder, tensors, shards):
    """The tensors dealt to `shards` files, and their index; returns the weight map."""
    weight_map = {}
    for i in range(shards):
        file = f"model-{i + 1:05}-of-{shards:05}.safetensors"
        part = {name: tensor for j, (name, tensor) in enumerate(tensors.items()) if j % shards == i}
        save(folder / file, part)
        weight_map |= dict.fromkeys(part, file)
    save_index(folder, weight_map)
    return weight_map


def save_index(folder, weight_map):
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def wanted(spec, tensors, dtype):
    """What the spec describes, from the file's tensors, by other means than the loader's; [rows, columns] or flat."""
    parts = []
    for piece in spec.pieces:
        part = tensors[piece.name].to(dtype)
        part = part.reshape(-1, part.shape[-1] if part.dim() > 1 else 1)
        part = part if piece.rows is None else part[slice(*piece.rows)]
        parts.append(part.t() if piece.transposed else part)
    return torch.cat([part.reshape(-1) for part in parts]).view(spec.shape)


def assert_stored(store, architecture, tensors):
    """Every tensor of the store is what its spec describes, bit for bit."""
    slabs = [store.resident_slab, *(store.slab(i) for i in range(len(architecture.layer_tensors)))]
    for specs, slab in zip((architecture.resident_tensors, *architecture.layer_tensors), slabs, strict=True):
        for spec, storage in zip(specs, store.storages(slab), strict=True):
            expected = wanted(spec, tensors, architecture.config.dtype)
            if spec.form is Form.PLAIN:
                assert torch.equal(storage, expected), spec.name
                continue
            rows, columns = spec.shape[-2:]
            matrices = expected.view(-1, rows, columns)
            panels = storage.view(math.prod(spec.shape[:-2]), -1, columns, 32)
            for matrix, packed in zip(matrices, panels, strict=True):
                assert torch.equal(unpack(packed, rows), matrix), spec.name
