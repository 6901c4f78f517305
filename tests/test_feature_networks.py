"""Networks by path: each is fed as it says, named in the results, and scores."""

import numpy as np
import pytest

from data_pipelines import people
from launch import feature_networks
from tavr_jax.errors import InputError
from tavr_jax.evaluation import benchmark, results

onnx = pytest.importorskip("onnx", reason="makes the tiny networks of these tests")
pytest.importorskip("onnxruntime", reason="runs them")

Z = 6


def network(path, shape, rng, inputs=1, rank=2):
    """Means over time and space of each channel, times a random matrix; of two inputs
    their absolute difference."""
    from onnx import TensorProto, helper, numpy_helper

    names = [f"in{i}" for i in range(inputs)]
    value = helper.make_tensor_value_info
    given = [value(n, TensorProto.FLOAT, shape) for n in names]
    weight = numpy_helper.from_array(rng.normal(size=(3, Z)).astype(np.float32), "w")
    nodes, last = [], names[0]
    if inputs == 2:
        nodes += [
            helper.make_node("Sub", names, ["apart"]),
            helper.make_node("Abs", ["apart"], ["far"]),
        ]
        last = "far"
    axes = list(range(2, len(shape)))
    nodes.append(helper.make_node("ReduceMean", [last], ["m"], axes=axes, keepdims=0))
    if rank == 2:
        nodes.append(helper.make_node("MatMul", ["m", "w"], ["out"]))
        gives = [shape[0], Z]
    else:
        nodes.append(
            helper.make_node("ReduceMean", ["m"], ["out"], axes=[1], keepdims=0)
        )
        gives = [shape[0]]
    out = value("out", TensorProto.FLOAT, gives)
    graph = helper.make_graph(nodes, "g", given, [out], [weight] if rank == 2 else [])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
    model.ir_version = 8
    onnx.save(model, str(path))
    return numpy_helper.to_array(weight)


@pytest.fixture
def video():
    """20 frames of a few colours, with the same box in each."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 255, (20, 4, 4, 3)).astype(np.uint8)
    frames = coarse.repeat(12, axis=1).repeat(12, axis=2)
    return frames, np.tile(np.float32([0.2, 0.2, 0.8, 0.8]), (20, 1))


def test_every_network_is_fed_as_it_says(tmp_path, video, capsys):
    rng, (frames, boxes) = np.random.default_rng(1), video
    face = network(tmp_path / "face.onnx", [1, 3, 32, 32], rng)
    fid = network(tmp_path / "fid.onnx", ["n", 3, 24, 24], rng)
    fvd = network(tmp_path / "fvd.onnx", ["n", 3, 16, 24, 24], rng)
    network(tmp_path / "lpips.onnx", ["n", 3, "y", "x"], rng, inputs=2, rank=1)
    given, networks = feature_networks.given(
        [f"plain={tmp_path / 'face.onnx'}"],
        *(str(tmp_path / f"{kind}.onnx") for kind in ("fid", "fvd", "lpips")),
    )
    crops = people.crop_faces(frames, boxes, 32, 16).astype(np.float32)
    wanted = (crops / 127.5 - 1).mean(axis=(1, 2)) @ face
    np.testing.assert_allclose(given.faces["plain"](frames, boxes), wanted, atol=1e-4)
    # halves of the picture's colour blocks: every source pixel counts the same
    wanted = (frames / 127.5 - 1).mean(axis=(1, 2)) @ fid
    np.testing.assert_allclose(given.fid(frames), wanted, atol=1e-4)
    clips = np.stack([frames[:16], frames[4:]])
    wanted = (clips / 255).mean(axis=(1, 2, 3)) @ fvd
    np.testing.assert_allclose(given.fvd(clips), wanted, atol=1e-4)
    assert len(given.fvd(clips[:0])) == 0
    bright = np.clip(frames.astype(int) + 51, 0, 255).astype(np.uint8)
    apart = np.abs(bright / 127.5 - frames / 127.5).mean(axis=(1, 2, 3))
    np.testing.assert_allclose(given.lpips(bright, frames), apart, atol=1e-4)
    assert not given.lpips(frames, frames).any()
    told = capsys.readouterr().out
    for name in ("plain", "fid.onnx", "fvd.onnx", "lpips.onnx"):
        assert f"{name} " in told
    assert told.count("You gave this file") == 4
    assert networks.keys() == {"face plain", "fid", "fvd", "lpips"}


def test_what_was_given_is_named_in_the_results(tmp_path, capsys):
    rng = np.random.default_rng(1)
    for name in ("arcface_antelopev2", "mine"):
        network(tmp_path / f"{name}.onnx", [1, 3, 112, 112], rng)
    faces = [f"{n}={tmp_path / n}.onnx" for n in ("arcface_antelopev2", "mine")]
    network(tmp_path / "fid.onnx", ["n", 3, "y", "x"], rng)
    path = str(tmp_path / "fid.onnx")
    _, networks = feature_networks.given(faces, path, None, None)
    ours = dict.fromkeys(
        ("face", "lipsync"), benchmark.Network("net 1", "Apache-2.0", True)
    )
    networks = ours | networks
    metrics = benchmark.metrics_of(networks, silent=False)
    described = results.described(benchmark.methods(networks, metrics), metrics)
    known, unknown = described["arcface_antelopev2/identity"], described["mine/facesim"]
    assert "non-commercial" in known["licence"] and not known["commercial"]
    assert known["network"].startswith("arcface_antelopev2 arcface_antelopev2.onnx ")
    assert "not known" in unknown["licence"] and "112 x 112" in unknown["preprocessing"]
    assert described["identity"]["network"] == "net 1"
    sets = benchmark.set_methods(networks)
    assert "299 x 299" in sets["fid"].preprocessing and "fvd" not in sets
    assert sets["fid"].licence.endswith("not known to us")
    capsys.readouterr()
    named = feature_networks.given([], f"inception_v3_fid={path}", None, None)[1]["fid"]
    assert named.what.startswith("inception_v3_fid fid.onnx ") and named.commercial
    assert "Apache-2.0" in named.licence and not capsys.readouterr().out
    assert [m.key for m in benchmark.listed(described)] == [m.key for m in metrics]


@pytest.mark.parametrize(
    ("shape", "inputs", "rank", "flag", "said"),
    [
        ([1, 3, 32, 32], 1, 2, "fvd", "its input is not"),
        ([1, 3, 16, 32, 32], 1, 2, "fid", "its input is not"),
        ([1, 3, 32, 32], 1, 1, "fid", "--fid_network .*gives"),
        ([1, 3, 32, 32], 1, 2, "lpips", "its input is not"),
        ([1, 3, 8, 32, 32], 1, 2, "fvd", "--fvd_network .*8 frames"),
        ([1, 3, 32, 16], 1, 2, "face", "--face_network .*not a square"),
    ],
)
def test_another_kind_of_network_is_refused(tmp_path, shape, inputs, rank, flag, said):
    path = str(tmp_path / "x.onnx")
    network(path, shape, np.random.default_rng(0), inputs, rank)
    flags = {"faces": [], "fid": None, "fvd": None, "lpips": None}
    flags |= {"faces": [f"x={path}"]} if flag == "face" else {flag: path}
    with pytest.raises(InputError, match=said):
        feature_networks.given(**flags)


@pytest.mark.parametrize("given", ["x", "=x.onnx", "a b=x.onnx", "a/b=x.onnx"])
def test_a_face_network_has_a_name_and_a_file(given):
    with pytest.raises(InputError, match="--face_network"):
        feature_networks.given([given], None, None, None)
