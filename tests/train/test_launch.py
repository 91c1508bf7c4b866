"""The files for `accelerate launch` are what accelerate takes, and name layers that our models have."""

from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import DistributedType

import train
from modeling_unified import UnifiedForConditionalGeneration

LAUNCH = Path(train.__file__).parent / "launch"
KINDS = {"ddp": DistributedType.MULTI_GPU, "fsdp2": DistributedType.FSDP, "deepspeed": DistributedType.DEEPSPEED}


def test_there_is_a_file_for_each_kind():
    assert {path.stem for path in LAUNCH.glob("*.yaml")} == set(KINDS)


@pytest.mark.parametrize("name", KINDS)
def test_accelerate_takes_the_file(name):
    config = load_config_from_file(str(LAUNCH / f"{name}.yaml"))
    assert config.distributed_type == KINDS[name] and config.num_processes % 8 == 0


def test_layers_that_are_gathered_one_by_one_are_the_language_models(make_tiny_config):
    chosen = load_config_from_file(str(LAUNCH / "fsdp2.yaml")).fsdp_config["fsdp_transformer_layer_cls_to_wrap"]
    model = UnifiedForConditionalGeneration(make_tiny_config("unitoken"))
    wrapped = [name for name, module in model.named_modules() if type(module).__name__ in chosen.split(",")]
    assert wrapped and all(name.startswith("model.language_model.") for name in wrapped)
