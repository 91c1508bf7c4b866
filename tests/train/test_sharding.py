"""What can be told of shared weights without other processes; with them: test_processes.py."""

from types import SimpleNamespace

import pytest

from train.sharding import share_weights


def test_a_backbone_that_does_not_name_its_layers_is_refused(tiny_model):
    tiny_model.model.language_model._no_split_modules = ["Layer"]
    plugin = SimpleNamespace(cpu_offload=None)
    accelerator = SimpleNamespace(state=SimpleNamespace(fsdp_plugin=plugin), mixed_precision="no")
    with pytest.raises(ValueError, match=r"LlamaModel has no layers of the kinds \['Layer'\].*train/launch/ddp.yaml"):
        share_weights(tiny_model, tiny_model, accelerator)
