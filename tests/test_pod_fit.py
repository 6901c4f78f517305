"""What launch.pod refuses before anything is rented: what a run could not do there."""

import re

import pytest
from test_pod import ROOT, job

from configs import cross_scene, policy
from launch import pod_fit
from launch.pod_topology import parse
from tavr_jax.errors import InputError


def config(stage=cross_scene, **parallel):
    c = stage.get_config("tavr_14b")
    c.data.path, c.data.batch_size = "gs://bucket/data", 256
    c.parallel.update(parallel)
    return c


def test_the_mesh_is_over_all_devices_of_all_slices():
    given = job("jobset", topology=parse("tpu7x:4x4x4"), slices=2)
    mesh = pod_fit.check(given, config(data=2, context=4))
    assert dict(mesh.shape) == {"data": 2, "fsdp": 32, "context": 4, "tensor": 1}
    assert len({d.process_index for d in mesh.devices.flat}) == 32
    table = pod_fit.summary(given, config(data=2, context=4), mesh)
    rows = dict(re.split(r"\s{2,}", line, maxsplit=1) for line in table.splitlines())
    assert (rows["hosts"], rows["chips"], rows["chips per host"]) == ("32", "128", "4")
    held = "4, each shared by 4 devices"
    assert (rows["global batch"], rows["samples a device"]) == ("256", held)


def test_a_config_that_does_not_fit_is_refused():
    given = job("jobset")
    with pytest.raises(InputError, match=r"parallel: .*256 devices"):
        pod_fit.check(given, config(data=3))
    with pytest.raises(InputError, match=r"parallel\.data: 1: 2 slices.*data=2$"):
        pod_fit.check(job("jobset", slices=2), config(fsdp=128, context=4))
    for field, value in (("batch_size", 100), ("path", ""), ("path", "/data")):
        wrong = config()
        wrong.data[field] = value
        with pytest.raises(InputError, match=rf"data\.{field}"):
            pod_fit.check(given, wrong)
    with pytest.raises(InputError, match=r"tensor: 16 does not divide .* 40$"):
        pod_fit.check(given, config(fsdp=16, tensor=16))
    # a policy batch counts its rollouts
    few = config(policy)
    few.data.batch_size, few.policy.group_size = 32, 8
    assert pod_fit.check(given, few).shape["fsdp"] == 256


HUB, HERE = "owner/name:face.safetensors", "tavr_jax/assets/mini/face.safetensors"


@pytest.mark.parametrize(
    ("field", "value", "cloud", "slurm"),
    [
        ("networks.face", "/home/me/face.safetensors", "share no disk", ""),
        ("networks.codec", "../vae.pth", "share no disk", ""),
        ("evaluation.face", "tests/conftest.py", "share no disk", ""),  # not in images
        ("evaluation.face", HERE, "", ""),
        ("networks.face", HUB, "", ""),
        ("networks.lipsync", "gs://b/x.safetensors", "from buckets", "from buckets"),
        ("init_from", "gs://b/x.safetensors", "only folders", "only folders"),
        ("init_from", "/home/me/run", "share no disk", ""),
        ("init_from", "gs://b/run", "", ""),
        ("init_from", "mini:cross_scene", "", ""),
        ("init_from", "HeyGenAI/TAVR", "", ""),
        ("networks.identity", "/home/me/x.onnx", "", ""),  # of prepare_data alone
    ],
)
def test_weights_have_to_be_where_the_machines_read_them(
    monkeypatch, field, value, cloud, slurm
):
    monkeypatch.chdir(ROOT)
    asked = config()
    asked.update_from_flattened_dict({field: value})
    for target, refused in (("jobset", cloud), ("queued", cloud), ("slurm", slurm)):
        if refused:
            expected = rf"^--config\.{field}={value}: [^\n]*{refused}"
            with pytest.raises(InputError, match=expected):
                pod_fit.check(job(target), asked)
        else:
            pod_fit.check(job(target), asked)
