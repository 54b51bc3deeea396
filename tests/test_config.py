"""The configuration: layers, types, refusals, former names, and the published command lines."""

from __future__ import annotations

import copy
import importlib.util
import os
import pickle
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from easydict import EasyDict

import config
from utils.errors import UserError, run_entry_point
from utils.options import Option

ROOT = Path(__file__).resolve().parent.parent

# The contract: a flag leaves or joins this list on purpose only.
FLAGS = """
--accumulate --advstyle --amp --arch --attention_pixels --average --backbone --backbone_lr --batch_weighting --bblur
--bs_mult --bs_mult_val --cache --cache_dir --centroid_cache --city_mode --ckpt --class_uniform_pct
--class_uniform_tile --clip_grad_norm --cls_wt_loss --clusters --coarse_boost_classes --color_aug --compile --config
--corrupt --cov_stat_epoch --covstat_val_dataset --crop_nopad --crop_size --dataset --date --deterministic --device
--dist_timeout --dist_url --domains --dump_augmentation_images --dynamic --ema_decay --eval_protocol --exp --fda
--find_batch --flip --fp16 --frame_cache --freeze_bn --gblur --grad_checkpoint --grad_compress --help --image_in
--image_uniform_sampling --img_wt_loss --jitter --jointwtborder --label_smoothing --layer_decay --layout_confidence
--local-rank --local_rank --log_interval --lora_rank --lr --lr_schedule --max_cu_epoch --max_epoch --max_iter --mean
--method --mixstyle --model --momentum --more_metrics --nan --no_norm_decay --no_quick_check --no_syncbn
--no_val_source --num_workers --ohem_min_kept --ohem_thresh --optimizer --opts --other_data --out --output_stride
--per_image --pictures --poly_exp --pre_size --prediction_encoding --predictions --pretrained --profile --quick_check
--randaugment --randconv --randconv_repeats --rein_tokens --relax_denom --replay --repoly --report --rescale
--resize_predictions --restore_optimizer --resume --rlx_off_iter --rrotate --save_interval --scale_max --scale_min
--scales --seed --sgd --snapshot --split --stat_images --std --strict_bdr_cls --stride --syncbn --tb_path --tb_tag
--test_mode --trials --tune --val_dataset --val_interval --val_limit --val_source --version --visualize_feature
--warmup_iters --warmup_ratio --weight_decay --window --wt_bound --wt_layer --wt_reg_weight
--zero_unreached_taps -wb
""".split()

KEYS = {  # checkpoints and files of older versions hold them
    "DATASET": """
        ACDC_DIR BDD_DIR CAMVID_DIR CENTROID_CACHE CITYSCAPES_DIR CITY_MODE CLASS_UNIFORM_PCT CLASS_UNIFORM_TILE
        COARSE_BOOST_CLASSES COVSTAT DARKZURICH_DIR DOMAINS_FILE FRAME_CACHE GTAV_DIR IDD_DIR IMAGE_UNIFORM_SAMPLING
        KITTI_DIR MAPILLARY_DIR MAX_CU_EPOCH NUM_WORKERS QUICK_CHECK SPLIT SYNTHIA_DIR TRAIN VAL
    """,
    "NETWORK": """
        ARCH BACKBONE FREEZE_BN GRAD_CHECKPOINT LORA_RANK METHOD OUTPUT_STRIDE PRETRAINED
        REIN_TOKENS SYNCBN TUNE WT_LAYER ZERO_UNREACHED_TAPS
    """,
    "WHITENING": "CLUSTERS COV_STAT_EPOCH DYNAMIC REG_WEIGHT RELAX_DENOM STAT_IMAGES TRIALS",
    "LOSS": """
        BATCH_WEIGHTS CLASS_WEIGHTS IMAGE_WEIGHTS LABEL_SMOOTHING LAYOUT_CONFIDENCE OHEM_MIN_KEPT OHEM_THRESH
        RELAX_BORDERS STRICT_CLASSES WEIGHT_BOUND
    """,
    "AUGMENT": """
        ADVSTYLE BBLUR COLOR_AUG CROP_NOPAD CROP_SIZE FDA GBLUR IMAGE_IN JITTER MEAN MIXSTYLE PRE_SIZE RANDAUGMENT
        RANDCONV RANDCONV_REPEATS RROTATE SCALE_MAX SCALE_MIN STD
    """,
    "OPTIM": """
        ACCUMULATE AMP BACKBONE_LR BATCH_SIZE CLIP_GRAD_NORM COMPILE EMA_DECAY GRAD_COMPRESS LAYER_DECAY LR
        LR_SCHEDULE MAX_EPOCH MAX_ITER MOMENTUM NAME NAN NO_NORM_DECAY POLY_EXP REPOLY RESCALE RLX_OFF_ITER
        WARMUP_ITERS WARMUP_RATIO WEIGHT_DECAY
    """,
    "EVAL": """
        ATTENTION_PIXELS AVERAGE BATCH_SIZE CORRUPT FLIP INTERVAL LIMIT MORE_METRICS OUT PER_IMAGE PICTURES
        PREDICTIONS PREDICTION_ENCODING PROTOCOL REPORT RESIZE_PREDICTIONS SCALES SOURCE STRIDE VISUALIZE WINDOW
    """,
    "RUN": """
        CKPT DATE DETERMINISTIC DEVICE DIST_TIMEOUT DIST_URL DUMP_AUGMENTATION EXP FIND_BATCH LOCAL_RANK LOG_INTERVAL
        OTHER_DATA PROFILE REPLAY RESTORE_OPTIMIZER RESUME SAVE_INTERVAL SEED SNAPSHOT TB_PATH TB_TAG TEST_MODE
    """,
}

PUBLISHED_COMMON = """
--city_mode 'train' --lr_schedule poly --lr 0.01 --poly_exp 0.9 --max_cu_epoch 10000 --class_uniform_pct 0.5
--crop_size 768 --scale_min 0.5 --scale_max 2.0 --rrotate 0 --max_iter 40000 --gblur --color_aug 0.5 --date 0101
--ckpt ./logs/ --tb_path ./logs/ --sgd --syncbn
"""
PUBLISHED = [  # program, flags of a published script besides the common ones
    "train --dataset gtav --covstat_val_dataset gtav --val_dataset cityscapes --class_uniform_tile 1024 --bs_mult 8 "
    "--arch network.deepv3.DeepR50V3PlusD --wt_reg_weight 0.6 --relax_denom 0.0 --clusters 3 --cov_stat_epoch 5 "
    "--trials 10 --wt_layer 0 0 2 2 2 0 0 --exp r50os16_gtav_isw",
    "train --dataset cityscapes --covstat_val_dataset cityscapes --val_dataset bdd100k --class_uniform_tile 512 "
    "--arch network.deepv3.DeepR50V3PlusD --bs_mult 8 --wt_reg_weight 0.6 --relax_denom 0.0 --clusters 2 "
    "--cov_stat_epoch 5 --trials 10 --wt_layer 0 0 2 2 2 0 0 --exp r50os16_city_isw",
    "train --dataset gtav --covstat_val_dataset gtav --val_dataset bdd100k cityscapes synthia mapillary --bs_mult 4 "
    "--arch network.deepv3.DeepR50V3PlusD --wt_reg_weight 0.6 --relax_denom 64.0 --clusters 0 --cov_stat_epoch 0 "
    "--trials 0 --wt_layer 0 0 1 1 1 0 0 --exp r50os16_gtav_irw",
    "train --dataset gtav --covstat_val_dataset gtav --val_dataset bdd100k cityscapes synthia mapillary --bs_mult 4 "
    "--arch network.deepv3.DeepR101V3PlusD_OS8 --wt_reg_weight 0.0 --relax_denom 0.0 --cov_stat_epoch 0 "
    "--wt_layer 4 4 0 4 4 0 0 --exp r101os8_gtav_ibn",
    "train --dataset gtav --covstat_val_dataset gtav --val_dataset bdd100k cityscapes synthia mapillary --bs_mult 4 "
    "--arch network.deepv3.DeepR50V3PlusD --wt_layer 0 0 5 5 5 0 0 --exp r50os16_gtav_switchable",
    "valid --val_dataset bdd100k cityscapes synthia mapillary --arch network.deepv3.DeepR50V3PlusD "
    "--wt_layer 0 0 2 2 2 0 0 --exp r50os16_gtav_isw --snapshot weights.pth",
]


@pytest.fixture(autouse=True)
def _no_outside_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("DIIA__")]:
        monkeypatch.delenv(name)


def parse(line: str = "", *, program: str = "train") -> Any:
    return config.parse(shlex.split(line), program=program)


def flag_names(program: str = "train") -> set[str]:
    parser = config.make_parser(program=program)
    return {name for action in parser._actions for name in action.option_strings if name != "-h"}


@pytest.mark.parametrize("program", ["train", "valid"])
def test_flags_are_the_contract(program: str) -> None:
    assert sorted(flag_names(program)) == sorted(FLAGS)


def test_keys_are_the_contract() -> None:
    assert {section: sorted(values) for section, values in parse().items()} == {
        section: names.split() for section, names in KEYS.items()
    }


def test_refused_flags_are_no_options() -> None:
    assert not set(config.REFUSED) & flag_names()


@pytest.mark.parametrize("line", PUBLISHED, ids=lambda line: line.split()[-1])
def test_published_command_lines_parse(line: str) -> None:
    program, _, flags = line.partition(" ")
    cfg = parse(flags + (PUBLISHED_COMMON if program == "train" else ""), program=program)
    words = shlex.split(flags)
    assert list(cfg.NETWORK.WT_LAYER) == [int(code) for code in words[words.index("--wt_layer") + 1 :][:7]]
    if program == "train":
        assert (cfg.AUGMENT.CROP_SIZE, cfg.AUGMENT.COLOR_AUG, cfg.AUGMENT.GBLUR) == (768, 0.5, True)
        assert (cfg.RUN.DATE, cfg.OPTIM.MAX_ITER, cfg.OPTIM.NAME) == ("0101", 40000, "sgd")


def test_layers_win_in_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = tmp_path / "first.yaml", tmp_path / "second.yaml"
    first.write_text("OPTIM: {LR: 0.1, MOMENTUM: 0.1, POLY_EXP: 0.1, MAX_ITER: 100}\nDATASET: {GTAV_DIR: /yaml}\n")
    second.write_text("OPTIM.MAX_ITER: 200\n")
    monkeypatch.setenv("DIIA__OPTIM__LR", "0.2")
    monkeypatch.setenv("DIIA__OPTIM__MOMENTUM", "0.2")
    monkeypatch.setenv("DIIA_TEST_DATA", "not an option")
    cfg = parse(f"--config {first} --lr 0.3 --config {second} --opts DATASET.TRAIN=gtav,synthia RUN.SEED=1 --seed 2")
    assert (cfg.OPTIM.LR, cfg.OPTIM.MOMENTUM, cfg.OPTIM.POLY_EXP, cfg.OPTIM.MAX_ITER) == (0.3, 0.2, 0.1, 200)
    assert cfg.OPTIM.WEIGHT_DECAY == 5e-4
    assert cfg.DATASET.GTAV_DIR == "/yaml"
    assert cfg.DATASET.TRAIN == ["gtav", "synthia"]
    assert cfg.RUN.SEED == 2  # on the command line the later wins, flag or --opts
    assert config.cfg == cfg


def test_flags_that_are_absent_leave_the_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("AUGMENT: {GBLUR: true}\nNETWORK: {SYNCBN: false, WT_LAYER: [0, 0, 1, 1, 1, 0, 0]}\n")
    cfg = parse(f"--config {path}")
    assert cfg.AUGMENT.GBLUR and not cfg.NETWORK.SYNCBN and cfg.NETWORK.WT_LAYER == [0, 0, 1, 1, 1, 0, 0]
    cfg = parse(f"--config {path} --syncbn --opts AUGMENT.GBLUR=false --wt_layer none")
    assert not cfg.AUGMENT.GBLUR and cfg.NETWORK.SYNCBN and cfg.NETWORK.WT_LAYER is None


def test_weights_of_the_cross_entropy_parse() -> None:
    cfg = parse("--jointwtborder --strict_bdr_cls 5,6,7,11 12 -wb 0.5 --batch_weighting --rlx_off_iter 100").LOSS
    assert cfg.RELAX_BORDERS and cfg.BATCH_WEIGHTS and not cfg.IMAGE_WEIGHTS
    assert (cfg.WEIGHT_BOUND, cfg.STRICT_CLASSES) == (0.5, [5, 6, 7, 11, 12])


def test_two_flags_name_the_optimiser_and_the_later_wins() -> None:
    lines = ("", "--sgd", "--optimizer adamw", "--sgd --optimizer adamw", "--optimizer adamw --sgd")
    assert [parse(line).OPTIM.NAME for line in lines] == ["sgd", "sgd", "adamw", "adamw", "sgd"]


def test_each_parse_starts_from_the_defaults() -> None:
    assert parse("--lr 0.5").OPTIM.LR == 0.5
    assert parse().OPTIM.LR == 0.01


def test_programs_share_keys_but_not_all_defaults() -> None:
    train, valid = parse(), parse(program="valid")
    assert train.DATASET.VAL == ["mapillary"] and valid.DATASET.VAL == ["bdd100k"]
    assert [*train] == [*valid]


def test_values_are_typed() -> None:
    cfg = parse("--lr 1 --rrotate 10 --relax_denom none --val_dataset --no_syncbn --local-rank=3 --rlx_off_iter -1")
    assert type(cfg.OPTIM.LR) is float and type(cfg.AUGMENT.RROTATE) is float
    assert cfg.WHITENING.RELAX_DENOM is None and cfg.DATASET.VAL == [] and not cfg.NETWORK.SYNCBN
    assert cfg.RUN.LOCAL_RANK == 3
    home = parse("--opts DATASET.GTAV_DIR=~/data").DATASET.GTAV_DIR
    assert home.endswith("/data") and "~" not in home


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--crop_sise 3", "there is no flag --crop_sise; did you mean '--crop_size'"),
        ("--lr_sched poly", "there is no flag --lr_sched; did you mean '--lr_schedule'"),
        ("weights.pth", "'weights.pth' belongs to no flag"),
        ("--lr", "--lr: expected one argument"),
        ("--dataset", "--dataset: expected at least one argument"),
        ("--lr fast", "--lr must be a number above 0, got 'fast'"),
        ("--lr 0", "--lr must be a number above 0, got 0"),
        ("--relax_denom 0.5", "--relax_denom 0.5: is 0 for no margin, or at least 1"),
        ("--lr nan", "--lr must be a number above 0, got nan"),
        ("--max_iter 1.5", "--max_iter must be a whole number of at least 1, got '1.5'"),
        (f"--max_iter {10**400}", "--max_iter must be a whole number of at least 1, got 1000"),
        ("--crop_size 16", "--crop_size must be a whole number of at least 32, got 16"),
        ("--bs_mult 0", "--bs_mult must be a whole number of at least 1, got 0"),
        ("--class_uniform_pct 50", "--class_uniform_pct must be a number from 0 to 1, got 50"),
        ("--scale_min 2 --scale_max 1", "--scale_min 2 is above --scale_max 1"),
        ("--wt_layer 0 0 2", "--wt_layer must be a list of 7 values, each a whole number from 0 to 6"),
        ("--wt_layer 0 0 2 2 9 0 0", "--wt_layer must be a list of 7 values"),
        ("--city_mode trian", "--city_mode must be one of train, trainval, got 'trian'; did you mean 'train'"),
        ("--lr_schedule scl-poly", "--lr_schedule scl-poly needs --rlx_off_iter from 0 to 29999"),
        ("--cls_wt_loss --jointwtborder", "--cls_wt_loss and --jointwtborder each weigh the cross entropy"),
        ("--img_wt_loss --jointwtborder", "--img_wt_loss and --jointwtborder each weigh the cross entropy"),
        ("--batch_weighting", "--batch_weighting belongs to --img_wt_loss or --jointwtborder"),
        ("--cls_wt_loss -wb 2", "--wt_bound belongs to --img_wt_loss or --jointwtborder"),
        ("--img_wt_loss --wt_bound -1", "--wt_bound must be a number of at least 0, got -1"),
        ("--visualize_feature --pictures 0", "--visualize_feature plots the images of --pictures, which is 0"),
        ("--window 512 512", "--window belongs to --eval_protocol sliding"),
        ("--eval_protocol half --stride 9 9", "--stride belongs to --eval_protocol sliding"),
        ("--eval_protocol sliding --window 64 64 --stride 32 65", "--stride .32, 65.: steps must not exceed the sides"),
        ("--eval_protocol sliding --window 512", "--window must be a list of 2 values"),
        ("--average logits", "--average belongs to --eval_protocol sliding or --scales or --flip"),
        ("--scales 0", "--scales must be a list of values, each a number above 0 and at most 8,"),
        ("--layer_decay 0", "--layer_decay must be a number above 0 and at most 1, got 0"),
        ("--attention_pixels 3 4", "--attention_pixels belongs to --visualize_feature"),
        ("--visualize_feature --attention_pixels 3 4 5", "--attention_pixels takes x and y of each pixel, got 3"),
        ("--img_wt_loss --strict_bdr_cls 5", "--strict_bdr_cls belongs to --jointwtborder"),
        ("--jointwtborder --strict_bdr_cls 19", "--strict_bdr_cls must be a list of values, each .* from 0 to 18"),
        ("--ohem_thresh 0.7 --img_wt_loss", "--ohem_thresh and --img_wt_loss each choose which pixels count"),
        ("--ohem_thresh 0.7 --jointwtborder", "--ohem_thresh and --jointwtborder each choose"),
        ("--label_smoothing 0.1 --jointwtborder", "--label_smoothing: targets of --jointwtborder are sets of classes"),
        ("--label_smoothing 0.1 --img_wt_loss", "--label_smoothing: targets of --img_wt_loss are sets of classes"),
        ("--mixstyle 0.5 --bs_mult 1", "--mixstyle: a process's images are mixed; give --bs_mult of at least 2"),
        ("--mixstyle 0.5 --fda 0.1 --bs_mult 1", "--fda and --mixstyle: a process's images are mixed"),
        ("--randconv_repeats 5", "--randconv_repeats belongs to --randconv"),
        ("--rescale 0.5", "--rescale belongs to --lr_schedule scl-poly"),
        ("--lr_schedule poly --repoly 2", "--repoly belongs to --lr_schedule scl-poly"),
        ("--rlx_off_iter 9 --img_wt_loss", "--rlx_off_iter belongs to --jointwtborder or --lr_schedule scl-poly"),
        ("--ohem_thresh 0.7 --crop_size 192", "--ohem_min_kept 100000: a crop of --crop_size 192 has 36864 pixels"),
        ("--ohem_min_kept 5", "--ohem_min_kept belongs to --ohem_thresh"),
        ("--optimizer adamw --momentum 0.8", "--momentum belongs to --optimizer sgd"),
        ("--tune lora --backbone_lr 0.1", "--backbone_lr belongs to --tune full"),
        ("--tune frozen --layer_decay 0.9", "--layer_decay belongs to --tune full"),
        ("--mean 123.7 116.3 103.5", "--mean must be a list of 3 values, each a number from 0 to 1"),
        ("--std 58.4 57.1 57.4", "--std must be a list of 3 values, each a number above 0 and at most 1 "),
        ("--ema_decay 1", "--ema_decay must be a number from 0 to 0.999999, got 1"),
        ("--adam", "--adam did nothing .*or use --optimizer adamw"),
        ("--restore_optimizer", "--restore_optimizer needs the checkpoint .* --snapshot FILE"),
        ("--opts DATASET.GTA_DIR=/x", "--opts: there is no option 'DATASET.GTA_DIR'; did you mean 'DATASET.GTAV_DIR'"),
        ("--opts optim.lr=1", "there is no option 'optim.lr'; did you mean 'OPTIM.LR'"),
        ("--opts lr=1", "there is no option 'lr'; did you mean 'OPTIM.LR'"),
        ("--opts OPTIM.LR", "--opts OPTIM.LR: must be KEY=VALUE"),
        ("--opts OPTIM.AMP=maybe", "--opts OPTIM.AMP must be one of off, bf16, fp16, auto, got 'maybe'"),
        ("--split test", "--split: DATASET.SPLIT belongs to valid.py"),
        ("--opts EVAL.OUT=x", "--opts: EVAL.OUT belongs to valid.py"),
        ("--config missing.yaml", "--config missing.yaml: cannot be read"),
        *((f"--dataset gtav {flag} 1", f"{flag} .*(does not exist here|is not available)") for flag in config.REFUSED),
    ],
)
def test_mistakes_on_the_command_line_are_named(line: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        parse(line)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("OPTIM: {LRR: 1}", "c.yaml: there is no option 'OPTIM.LRR'; did you mean 'OPTIM.LR'"),
        ("OPTM: {LR: 1}", "there is no option 'OPTM.LR'; did you mean 'OPTIM.LR'"),
        ("OPTIM: {LR: fast}", "c.yaml: OPTIM.LR must be a number above 0, got 'fast'"),
        ("OPTIM: {LR: true}", "OPTIM.LR must be a number"),
        ("OPTIM: {MAX_ITER: true}", "OPTIM.MAX_ITER must be a whole number of at least 1, got True"),
        ("OPTIM: {MAX_ITER: 2.5}", "OPTIM.MAX_ITER must be a whole number"),
        ("OPTIM: {AMP: 1}", "OPTIM.AMP must be one of off, bf16, fp16, auto, got 1"),
        ("OPTIM: 3", "there is no option 'OPTIM'"),
        ("RUN: {DATE: 0101}", "RUN.DATE must be text, got 65; put it in quotes"),
        ("DATASET: {TRAIN: gtav}", "DATASET.TRAIN must be a list of at least one value"),
        ("DATASET: {TRAIN: [1]}", "DATASET.TRAIN must be a list"),
        ("DATASET: {TRAIN: []}", "DATASET.TRAIN must be a list of at least one value"),
        ("DATASET: {TRAIN: null}", "DATASET.TRAIN must be a list"),
        ("- 1", "must hold SECTION"),
        ("OPTIM: {LR: 1", "not valid YAML"),
        ("RUN: {DATE: 2026-02-30}", "c.yaml: not valid YAML"),
    ],
)
def test_mistakes_in_a_file_are_named(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        parse(f"--config {path}")
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_yaml_reads_exponents_as_numbers(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("OPTIM: {LR: 1e-3, WEIGHT_DECAY: 1}\nEVAL:\n")
    cfg = parse(f"--config {path}")
    assert cfg.OPTIM.LR == 1e-3 and cfg.OPTIM.WEIGHT_DECAY == 1.0


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("DIIA__OPTIM__LRR", "1", "environment variable DIIA__OPTIM__LRR: .* did you mean 'OPTIM.LR'"),
        ("DIIA__OPTIM__LR", "fast", "environment variable DIIA__OPTIM__LR must be a number above 0, got 'fast'"),
    ],
)
def test_mistakes_in_the_environment_are_named(
    name: str, value: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=message):
        parse()


def test_a_mistake_ends_with_one_line_and_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as leave:
        run_entry_point(lambda: parse("--lr"))
    assert leave.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("error: --lr") and captured.err.count("\n") == 1


def test_the_tree_is_plain_and_its_own() -> None:
    cfg = parse("--lr 0.5 --dataset gtav")
    assert type(cfg) is type(cfg.OPTIM) is EasyDict and type(cfg.DATASET.TRAIN) is list
    for twin in (copy.deepcopy(cfg), pickle.loads(pickle.dumps(cfg))):
        assert twin == cfg and twin.OPTIM.LR == 0.5
    cfg.OPTIM.LR, cfg["OPTIM"]["MOMENTUM"] = 0.25, 0.25
    cfg.DATASET.TRAIN.append("synthia")
    assert (cfg["OPTIM"]["LR"], cfg.OPTIM.MOMENTUM) == (0.25, 0.25)
    assert (config.cfg.OPTIM.LR, config.cfg.DATASET.TRAIN) == (0.5, ["gtav"])  # a copy for those who import it
    config.cfg.DATASET.VAL.append("kitti")
    assert parse("--lr 0.5 --dataset gtav") == parse("--lr 0.5 --dataset gtav") == config.cfg != cfg


def test_mypy_finds_misspelt_keys_and_wrong_types(tmp_path: Path) -> None:
    lines = {
        "LEARNING_RATE: int = config.cfg.OPTIM.LR": "assignment",
        'config.parse([], program="train").OPTIM.LRR': "attr-defined",
        "config.from_dict({}).OPTM": "attr-defined",
        'config.cfg.DATASET.GTAV_DIR = "/data"': "",
        "config.cfg.DATASET.GTA_DIR = 3": "attr-defined",
        'config.cfg.AUGMENT.JITTER = "strong"': "assignment",
        'RATE: float = option("fast", "--rate", "Rate.")': "assignment",
    }
    code = "\n".join(("import config; from utils.options import option", *lines))
    (tmp_path / "reader.py").write_text(code)
    command = [sys.executable, "-m", "mypy", str(tmp_path / "reader.py")]  # with the cache that `mypy .` has filled
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    found = re.findall(r"reader.py:(\d+): error: .*\[(.*)\]", run.stdout)
    assert found == [(str(number), kind) for number, kind in enumerate(lines.values(), 2) if kind], run.stdout


def test_former_names_still_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = tmp_path / "old.yaml", parse("--frame_cache f --centroid_cache c")
    assert (new.DATASET.FRAME_CACHE, new.DATASET.CENTROID_CACHE) == ("f", "c")
    old.write_text("DATASET: {FRAMES_DIR: f, CACHE_DIR: c}\n")
    options = "--opts DATASET.FRAMES_DIR=f DATASET.CACHE_DIR=c"
    assert parse("--cache f --cache_dir c") == parse(options) == parse(f"--config {old}") == new
    assert config.from_dict(yaml.safe_load(old.read_text())) == new
    assert "FRAMES_DIR" not in config.to_yaml(new) and "CACHE_DIR" not in config.to_yaml(new)
    monkeypatch.setenv("DIIA__DATASET__FRAMES_DIR", "f")
    assert parse("--cache_dir c") == new
    with pytest.raises(UserError, match=r"old.yaml: DATASET.CACHE_DIR must be text"):
        old.write_text("DATASET: {CACHE_DIR: 3}\n")
        parse(f"--config {old}")


@pytest.mark.parametrize("program", ["train", "valid"])
def test_version_is_that_of_the_project(program: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as leave:
        parse("--version", program=program)
    toml = (ROOT / "pyproject.toml").read_text()
    assert leave.value.code == 0 and f'version = "{capsys.readouterr().out.split()[1]}"' in toml.splitlines()


def test_a_checkpoint_brings_the_configuration_back() -> None:
    cfg = parse("--dataset gtav synthia --wt_layer 0 0 1 1 1 0 0 --lr 0.3")
    plain = config.to_dict(cfg)
    assert type(plain) is dict and type(plain["OPTIM"]) is dict and plain["DATASET"]["TRAIN"] == ["gtav", "synthia"]
    assert config.from_dict(plain) == cfg
    plain["DATASET"]["TRAIN"].append("camvid")
    assert cfg.DATASET.TRAIN == ["gtav", "synthia"]
    plain["DATASET"]["TRAIN"].pop()
    del plain["EVAL"]
    assert config.from_dict(plain) == cfg  # written before a key existed
    plain["OPTIM"]["RESCALE"] = 0.5
    assert config.from_dict(plain).OPTIM.RESCALE == 0.5  # written before an option without effect was refused
    plain["OPTIM"]["LRR"] = 1
    with pytest.raises(UserError, match=r"last.pth: there is no option 'OPTIM.LRR'"):
        config.from_dict(plain, source="last.pth")


def test_the_yaml_of_a_run_starts_the_same_run(tmp_path: Path) -> None:
    cfg = parse("--dataset gtav --lr 1e-7 --date 0101 --wt_layer 0 0 2 2 2 0 0 --scale_max 3")
    path = tmp_path / "config.yaml"
    path.write_text(config.to_yaml(cfg))
    assert parse(f"--config {path}") == cfg
    assert yaml.safe_load(path.read_text()) == config.to_dict(cfg)


def test_the_yaml_of_a_run_takes_the_normalisation_of_another_backbone(tmp_path: Path) -> None:
    path, lite = tmp_path / "config.yaml", "--backbone timm/tf_efficientnet_lite0"
    for given, own, with_another in (("", [0.5] * 3, None), ("--mean 0.1 0.2 0.3", [0.1, 0.2, 0.3], [0.1, 0.2, 0.3])):
        cfg = parse(f"{lite} {given}")
        path.write_text(config.to_yaml(cfg))
        assert cfg.AUGMENT.MEAN == own and parse(f"--config {path}") == cfg
        assert parse(f"--config {path} --backbone resnet50").AUGMENT.MEAN == with_another


@pytest.mark.parametrize("row", config.KEYS.values(), ids=lambda row: row.key)
def test_every_row_is_sound(row: Option) -> None:
    assert re.fullmatch(r"[A-Z0-9]+\.[A-Z0-9_]+", row.key) and row.key.partition(".")[0] in config.GROUPS
    assert row.help[0].isupper() and row.help.endswith("."), "a sentence"
    assert row.check(row.default, row.key) == row.default
    text = " ".join(map(str, row.default)) if isinstance(row.default, list) else str(row.default)
    assert row.read(text, row.key) == row.default
    assert set(row.needs) <= {
        "--eval_protocol sliding",
        "--lr_schedule scl-poly",
        "--optimizer sgd",
        "--tune full",
        "--tune lora",
        "--tune rein",
        *(other.flag for other in config.KEYS.values()),
    }


@pytest.mark.parametrize("program", ["train", "valid"])
def test_help_has_groups_and_a_sentence_for_each_flag(program: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as leave:
        parse("--help", program=program)
    assert leave.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert program == "valid" or all(f" {title}: " in text for title in config.GROUPS.values())
    for row in config.KEYS.values():
        if row.flag:
            assert (row.help in text) == (program in row.programs), row.flag
    assert "[bdd100k]" in text if program == "valid" else "[mapillary]" in text


def load_edited(tmp_path: Path, old: str, new: str) -> Any:
    text = (ROOT / "config.py").read_text()
    assert text.count(old) == 1
    path = tmp_path / "edited_config.py"
    path.write_text(text.replace(old, new))
    spec = importlib.util.spec_from_file_location("edited_config", path)
    assert spec and spec.loader
    module = sys.modules["edited_config"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_paths_stand_near_the_top_and_editing_them_works(tmp_path: Path) -> None:
    lines = (ROOT / "config.py").read_text().splitlines()
    for name in ("CITYSCAPES", "MAPILLARY", "GTAV", "BDD", "SYNTHIA", "CAMVID", "KITTI", "ACDC", "IDD", "DARKZURICH"):
        (number,) = (i for i, line in enumerate(lines) if re.match(rf'__C\.DATASET\.{name}_DIR = "', line))
        assert number < 50
    old = '__C.DATASET.GTAV_DIR = "./data/GTAV"'
    edited = load_edited(tmp_path, old, '__C.DATASET.GTAV_DIR = "/mine"')
    assert edited.parse([], program="train").DATASET.GTAV_DIR == "/mine"
    assert edited.parse(["--opts", "DATASET.GTAV_DIR=/x"], program="train").DATASET.GTAV_DIR == "/x"
    with pytest.raises(UserError, match=r"config.py: there is no option 'DATASET.GTA_DIR'"):
        load_edited(tmp_path, old, '__C.DATASET.GTA_DIR = "/mine"').parse([], program="train")
    with pytest.raises(UserError, match=r"config.py: DATASET.GTAV_DIR must be text"):
        load_edited(tmp_path, old, "__C.DATASET.GTAV_DIR = 3").parse([], program="train")
    edited = load_edited(tmp_path, old, old)
    edited.cfg.DATASET.GTAV_DIR = "/from/outside"
    assert edited.parse([], program="train").DATASET.GTAV_DIR == "/from/outside"
