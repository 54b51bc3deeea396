"""Every option of a run once, as a typed field: key, type, default, flag, help, bounds.

`option` is one of train.py, `shared` one of valid.py too.
"""

from __future__ import annotations

from typing import Literal

from utils.options import Section, option, shared

BY_IMAGE = ("--img_wt_loss", "--jointwtborder")
SCL_POLY = ("--lr_schedule scl-poly",)
# fmt: off

class Data(Section):
    CITYSCAPES_DIR: str = option("", "", "Folder of Cityscapes.")
    MAPILLARY_DIR: str = option("", "", "Folder of Mapillary.")
    GTAV_DIR: str = option("", "", "Folder of GTAV.")
    BDD_DIR: str = option("", "", "Folder of BDD-100K.")
    SYNTHIA_DIR: str = option("", "", "Folder of SYNTHIA.")
    CAMVID_DIR: str = option("", "", "Folder of CamVid.")
    KITTI_DIR: str = option("", "", "Folder of KITTI.")
    ACDC_DIR: str = option("", "", "Folder of ACDC.")
    IDD_DIR: str = option("", "", "Folder of IDD.")
    DARKZURICH_DIR: str = option("", "", "Folder of Dark Zurich.")
    DOMAINS_FILE: str = shared("", "--domains", "YAML file that declares domains of your own.")
    TRAIN: list[str] = option(["cityscapes"], "--dataset", "Source domains to train on.", lengths=(1, 100))
    VAL: list[str] = shared(["mapillary"], "--val_dataset", "Target domains to evaluate on.")
    COVSTAT: list[str] = option([], "--covstat_val_dataset",
        "Domains whose training images give the covariance statistics of ISW; default: the source domains.")
    SPLIT: str = option("val", "--split", "Split that valid.py evaluates.", programs=("valid",))
    IMAGE_UNIFORM_SAMPLING: bool = option(False, "--image_uniform_sampling",
        "Pool several source domains, every image alike, instead of equal shares per domain.")
    CITY_MODE: Literal["train", "trainval"] = option("train", "--city_mode", "Cityscapes split to train on.")
    CLASS_UNIFORM_PCT: float = option(0.0, "--class_uniform_pct",
        "Share of an epoch that is sampled around class centroids, the same number for every class.", low=0, high=1)
    CLASS_UNIFORM_TILE: int = option(1024, "--class_uniform_tile",
        "Side in pixels of the tiles that are searched for class centroids.", low=1)
    MAX_CU_EPOCH: int = option(100000, "--max_cu_epoch", "Epochs that use class-uniform sampling.", low=0)
    CENTROID_CACHE: str = option("./cache", "--centroid_cache",
        "Folder of the class centroids, and of what the quick check found sound.",
        aliases=("--cache_dir", "DATASET.CACHE_DIR"))
    FRAME_CACHE: str = option("", "--frame_cache",
        "Folder of decoded training frames, filled by the first epochs or by scripts/build_cache.sh.",
        aliases=("--cache", "DATASET.FRAMES_DIR"))
    COARSE_BOOST_CLASSES: list[int] = option([], "--coarse_boost_classes",
        "Classes (train ids) that are sampled in Cityscapes' coarse frames too; needs --class_uniform_pct.",
        lengths=(0, 19), low=0, high=18)
    QUICK_CHECK: bool = shared(True, "--quick_check", "Check a sample of the data first (scripts.check_data --quick).")
    NUM_WORKERS: int = shared(-1, "--num_workers",
        "Loader workers per process; -1: the cores it may use, divided by those that torchrun started on "
        "the node, at most 16.",
        low=-1)

class Network(Section):
    ARCH: str = shared("network.deepv3.DeepR50V3PlusD", "--arch", "Backbone and output stride, by dotted name.")
    BACKBONE: str = shared("", "--backbone",
        "Backbone by plain name instead of --arch: resnet50, mobilenet_v2 (all: python -m scripts.network_summary), or "
        "any network of timm, foundation models included: timm/vit_small_patch14_dinov2.lvd142m.")
    OUTPUT_STRIDE: int = shared(0, "--output_stride",
        "Stride of the last features, 8, 16 or 32 (ResNets: 4 too); 0: that of --arch, 16 with --backbone.", low=0)
    METHOD: str = shared("diia", "--method",
        "Method to build: base, ibn, is, iw, irw, isw and sw have the plain DeepLabV3+ head, linear a batch norm and a "
        "1x1 convolution alone, diia its own; "
        "diia-no-edge, diia-no-layout, diia-no-aggregation and diia-no-whitening omit one part, diia-coarse has the "
        "coarse head alone; diia-v2 corrects what hardly acts in diia, diia-v2-old-edge, -confidence, -encoding, "
        "-attention, -content, -losses and -sites leave one correction out.")
    WT_LAYER: list[int] | None = shared(None, "--wt_layer",
        "Seven style codes, stem to last stage: 0 none, 1 whitening (IW, IRW), 2 ISW, 3 IN, 4 affine IN, 5 SW, "
        "6 ISW beside the path, which leaves the features as they are.",
        lengths=(7, 7), low=0, high=6)
    PRETRAINED: str = option("auto", "--pretrained",
        "Weights of the backbone: auto (timm's for timm/NAME, else torchvision's), torchvision, timm, none or a file "
        "(.pth, .pt, .safetensors).")
    TUNE: Literal["full", "frozen", "lora", "rein"] = option("full", "--tune",
        "What is trained of the pretrained backbone: all of it, nothing, LoRA's low-rank updates, or Rein's tokens "
        "(of plain ViTs); heads always are.")
    LORA_RANK: int = option(16, "--lora_rank", "Rank of LoRA's updates.", low=1, needs=("--tune lora",))
    REIN_TOKENS: int = option(100, "--rein_tokens", "Rein's tokens per block.", low=2, needs=("--tune rein",))
    GRAD_CHECKPOINT: bool = option(False, "--grad_checkpoint",
        "Compute the backbone's blocks again in the backward pass instead of keeping what is inside: less memory, "
        "more time.")
    ZERO_UNREACHED_TAPS: bool = option(False, "--zero_unreached_taps",
        "Start at zero those taps of the head's dilated convolutions that see only padding at --crop_size, also those "
        "of --snapshot.")
    SYNCBN: bool = option(True, "--syncbn", "Share batch-norm statistics between GPUs.")
    FREEZE_BN: bool = option(False, "--freeze_bn",
        "Freeze the batch-norm statistics of the pretrained backbone; scales and shifts still train.")

class Whitening(Section):
    REG_WEIGHT: float = option(0.6, "--wt_reg_weight", "Weight of the whitening loss.", low=0)
    RELAX_DENOM: float | None = option(None, "--relax_denom",
        "Denominator of IRW's margin, 0 for none; above 0 it chooses ISW's covariances in place of --clusters.", low=0)
    CLUSTERS: int = option(50, "--clusters", "Clusters of the covariance variances in ISW.", low=0)
    TRIALS: int = option(10, "--trials", "Passes over the images whose ISW masks are intersected.", low=0)
    DYNAMIC: bool = option(False, "--dynamic", "Compute the ISW masks again every cov_stat_epoch + 1 epochs.")
    COV_STAT_EPOCH: int = option(5, "--cov_stat_epoch", "Epoch (from 0) that ends with computing the ISW masks.", low=0)
    STAT_IMAGES: int = option(500, "--stat_images", "Images read per pass of the ISW statistics.", low=1)

class Loss(Section):
    CLASS_WEIGHTS: bool = option(False, "--cls_wt_loss", "Weight the cross entropy by fixed class weights.")
    IMAGE_WEIGHTS: bool = option(False, "--img_wt_loss",
        "Weight the cross entropy by image: a class weighs 1 + wt_bound * (1 - its share of the image).")
    BATCH_WEIGHTS: bool = option(False, "--batch_weighting",
        "Take the shares of --img_wt_loss and --jointwtborder over a process's batch, not per image.", needs=BY_IMAGE)
    WEIGHT_BOUND: float = option(1.0, "--wt_bound",
        "Largest extra weight of a rare class in --img_wt_loss and --jointwtborder, 0 for equal weights.", low=0,
        aliases=("-wb",), needs=BY_IMAGE)
    RELAX_BORDERS: bool = option(False, "--jointwtborder",
        "Relax labels at borders: any class of a pixel's 3x3 neighbourhood counts as correct; also weights by image.")
    STRICT_CLASSES: list[int] = option([], "--strict_bdr_cls",
        "Classes (train ids) whose own pixels --jointwtborder does not relax.", lengths=(0, 19), low=0, high=18,
        needs=("--jointwtborder",))
    OHEM_THRESH: float = option(0.0, "--ohem_thresh",
        "OHEM: cross entropy over hard pixels only, whose true class has less than this probability (e.g. 0.7); "
        "0 for all pixels.", low=0, high=1)
    OHEM_MIN_KEPT: int = option(100000, "--ohem_min_kept",
        "Pixels per crop that --ohem_thresh keeps at least, on average over a process's batch, the hardest first.",
        low=0, needs=("--ohem_thresh",))
    LABEL_SMOOTHING: float = option(0.0, "--label_smoothing",
        "Share of a pixel's label that the cross entropy spreads over all classes.", low=0, high=1)
    LAYOUT_CONFIDENCE: Literal["logits", "softmax"] = option("logits", "--layout_confidence",
        "What the thresholds of DIIA's coarse layout compare.")

class Augmentation(Section):
    CROP_SIZE: int = option(720, "--crop_size", "Side in pixels of the training crop.", low=32)
    CROP_NOPAD: bool = option(False, "--crop_nopad", "Do not pad images that are smaller than the crop.")
    PRE_SIZE: int = option(0, "--pre_size", "Resize the shorter side to this before scaling, 0 to disable.", low=0)
    SCALE_MIN: float = option(0.5, "--scale_min", "Smallest random scale.", above=0)
    SCALE_MAX: float = option(2.0, "--scale_max", "Largest random scale.", above=0)
    RROTATE: float = option(0.0, "--rrotate", "Largest random rotation in degrees, either way.", low=0, high=180)
    COLOR_AUG: float = option(0.0, "--color_aug", "Probability of the colour jitter.", low=0, high=1)
    JITTER: Literal["method", "diia", "robustnet"] = option("method", "--jitter",
        "Strengths of the colour jitter; method takes those of --method.")
    GBLUR: bool = option(False, "--gblur", "Blur every training crop with a random Gaussian.")
    BBLUR: bool = option(False, "--bblur", "Blur every training crop bilaterally; replaces --gblur.")
    MEAN: list[float] | None = shared(None, "--mean",
        "Mean of the images' channels, 0..1; default: that of the backbone's weights, else ImageNet's.", lengths=(3, 3),
        low=0, high=1)
    STD: list[float] | None = shared(None, "--std", "Their deviation, likewise.", lengths=(3, 3), above=0, high=1)
    IMAGE_IN: bool = shared(False, "--image_in",
        "Normalise every image by its own mean and deviation, not by --mean and --std.")
    FDA: float = option(0.0, "--fda",
        "FDA: largest frequency, in cycles per pixel, whose amplitude a process's images mix.", low=0, high=0.5)
    RANDAUGMENT: int = option(0, "--randaugment",
        "Magnitude of two random colour operations of RandAugment on every image; 0 for none.", low=0, high=30)
    RANDCONV: float = option(0.0, "--randconv",
        "RandConv: probability that an image is mixed with what a random convolution makes of it.", low=0, high=1)
    RANDCONV_REPEATS: int = option(1, "--randconv_repeats",
        "ProRandConv if above 1: up to this many 3x3 convolutions, without mixing.", low=1, needs=("--randconv",))
    ADVSTYLE: float = option(0.0, "--advstyle",
        "AdvStyle: step size of gradient ascent on the loss by each image's channel means and deviations; trains on "
        "plain and changed images, in twice the time. 0 for none.", low=0)
    MIXSTYLE: float = option(0.0, "--mixstyle",
        "MixStyle: probability of mixing features' statistics between a process's images, drawn at three outputs.",
        low=0, high=1)

class Optimisation(Section):
    NAME: Literal["sgd", "adamw"] = option("sgd", "--optimizer", "Optimiser; AdamW needs a smaller --lr, e.g. 0.0001.",
        shorthands={"--sgd": "sgd"})
    LR: float = option(0.01, "--lr", "Learning rate of the first step.", above=0)
    LR_SCHEDULE: Literal["poly", "scl-poly"] = option("poly", "--lr_schedule",
        "Learning-rate schedule; scl-poly restarts at --rlx_off_iter.")
    BACKBONE_LR: float = option(1.0, "--backbone_lr",
        "Factor of the learning rate for the backbone's pretrained parameters, e.g. 0.1.", above=0,
        needs=("--tune full",))
    LAYER_DECAY: float = option(1.0, "--layer_decay",
        "Layer-wise decay: factor of the learning rate per block from the head down to the stem, e.g. 0.9.",
        above=0, high=1, needs=("--tune full",))
    WARMUP_ITERS: int = option(0, "--warmup_iters", "Steps of a linear warm-up of the learning rate.", low=0)
    WARMUP_RATIO: float = option(1e-6, "--warmup_ratio", "Share of the learning rate at which the warm-up starts.",
        low=0, high=1, needs=("--warmup_iters",))
    POLY_EXP: float = option(0.9, "--poly_exp", "Exponent of the poly schedule.", low=0)
    RESCALE: float = option(1.0, "--rescale", "Factor of the second part of scl-poly.", above=0, needs=SCL_POLY)
    REPOLY: float = option(1.5, "--repoly", "Exponent of the second part of scl-poly.", low=0, needs=SCL_POLY)
    RLX_OFF_ITER: int = option(-1, "--rlx_off_iter",
        "Step at which --jointwtborder stops relaxing (its weights stay) and scl-poly's second part starts.", low=-1,
        needs=("--jointwtborder", *SCL_POLY))
    MAX_ITER: int = option(30000, "--max_iter", "Optimiser steps of the run.", low=1)
    MAX_EPOCH: int = option(0, "--max_epoch", "Stop after this many epochs, 0 for no limit.", low=0)
    WEIGHT_DECAY: float = option(5e-4, "--weight_decay",
        "Weight decay; decoupled from the gradient in AdamW, where 0.01 is usual.", low=0)
    NO_NORM_DECAY: bool = option(False, "--no_norm_decay",
        "No weight decay of norms, biases, position embeddings and tokens.")
    MOMENTUM: float = option(0.9, "--momentum", "Momentum of SGD.", low=0, high=1, needs=("--optimizer sgd",))
    BATCH_SIZE: int = option(2, "--bs_mult", "Images per process and forward pass.", low=1)
    ACCUMULATE: int = option(1, "--accumulate", "Forward passes accumulated per optimiser step.", low=1)
    NAN: Literal["stop", "skip"] = option("stop", "--nan",
        "What to do at a loss that is not finite: stop the run, or skip the step, which waits for a GPU in every step.")
    CLIP_GRAD_NORM: float = option(0.0, "--clip_grad_norm",
        "Largest norm of the gradient of all weights; larger gradients are scaled down. 0: no limit.", low=0)
    EMA_DECAY: float = option(0.0, "--ema_decay",
        "Maintain and evaluate an exponential moving average (EMA) of the weights with this decay; 0 for none.",
        low=0, high=0.999999)
    COMPILE: bool = option(False, "--compile",
        "Compile network and losses with torch.compile: takes minutes at the first step; the weights keep their names.")
    GRAD_COMPRESS: Literal["none", "bf16"] = option("none", "--grad_compress",
        "What processes send of their gradients: all of it, or bfloat16, which halves the traffic and rounds.")
    AMP: Literal["off", "bf16", "fp16", "auto"] = shared("off", "--amp",
        "Mixed precision: auto takes bfloat16 on GPUs that have it, float16 on others, and on a CPU bfloat16 where it "
        "measures as faster than float32.", aliases=("OPTIM.FP16",), shorthands={"--fp16": "auto"},
        booleans=("off", "auto"))

class Evaluation(Section):
    BATCH_SIZE: int = shared(1, "--bs_mult_val", "Images per process and forward pass of the evaluation.", low=1)
    PROTOCOL: Literal["full", "half", "sliding", "robustnet"] = shared("full", "--eval_protocol",
        "What the network sees: whole images (full), halved ones, whose logits go back to native size (half), "
        "overlapping windows (sliding), or as full, but of Mapillary only the 1536 centre square (robustnet).")
    WINDOW: list[int] = shared([1024, 1024], "--window", "Height and width of the windows.", lengths=(2, 2), low=32,
        needs=("--eval_protocol sliding",))
    STRIDE: list[int] | None = shared(None, "--stride",
        "Steps down and across between windows; default: 3/4 of --window.",
        lengths=(2, 2), low=1, needs=("--eval_protocol sliding",))
    SCALES: list[float] = shared([], "--scales",
        "Scales of the image whose predictions are averaged, e.g. 0.5 1 1.5; default: 1 alone.", above=0, high=8)
    FLIP: bool = shared(False, "--flip", "Average the predictions of each image and of its mirror image.")
    AVERAGE: Literal["probabilities", "logits"] = shared("probabilities", "--average",
        "What is averaged over windows, scales and mirror images.",
        needs=("--eval_protocol sliding", "--scales", "--flip"))
    INTERVAL: int = option(1, "--val_interval", "Epochs between two validations; 0: only at the end.", low=0)
    SOURCE: bool = option(True, "--val_source", "Evaluate on the source domains while training too.")
    LIMIT: int = shared(0, "--val_limit",
        "Images evaluated per domain, evenly spread, 0 for all; the final evaluation uses all images.", low=0)
    PICTURES: int = shared(4, "--pictures", "Images per domain that are plotted.", low=0)
    MORE_METRICS: bool = shared(False, "--more_metrics",
        "Evaluate boundary IoU and F-score, calibration error and how well confidence tells errors; takes time.")
    PER_IMAGE: bool = shared(False, "--per_image",
        "Keep each image's confusion matrix, per_image.npz beside scores.json, for compare_runs' intervals.")
    REPORT: bool = option(False, "--report",
        "Write report.html, one page with scores, frames, confusion and settings; train.py always does at its end.",
        programs=("valid",))
    VISUALIZE: bool = shared(False, "--visualize_feature",
        "Plot covariances, whitening masks, edge maps, coarse layouts and attention of the images of --pictures.")
    ATTENTION_PIXELS: list[int] = shared([], "--attention_pixels",
        "Pixels (x y x y ...) whose attention is plotted; default: centres of the largest classes.",
        lengths=(0, 24), low=0, needs=("--visualize_feature",))
    CORRUPT: list[str] = option([], "--corrupt",
        "Evaluate corrupted images too: NAME:SEVERITY ..., e.g. fog:3, NAME for severities 1 to 5, all for the 15 "
        "corruptions of Hendrycks and Dietterich.", programs=("valid",))
    OUT: str = option("", "--out", "Folder for the tables and pictures of valid.py.", programs=("valid",))
    PREDICTIONS: str = option("", "--predictions",
        "Folder of PNG files to evaluate instead of weights: DIR/DOMAIN or DIR, files named after the images.",
        programs=("valid",))
    PREDICTION_ENCODING: Literal["auto", "train_ids", "label_ids", "colour"] = option("auto", "--prediction_encoding",
        "What the files of --predictions hold; label_ids and colour are Cityscapes'; auto: told from a sample.",
        programs=("valid",), needs=("--predictions",))
    RESIZE_PREDICTIONS: Literal["none", "nearest"] = option("none", "--resize_predictions",
        "How files of --predictions of another size than their image are resized; none: they are refused.",
        programs=("valid",), needs=("--predictions",))

class Run(Section):
    SNAPSHOT: str = shared("", "--snapshot",
        "Weight file to start from, or to evaluate; valid.py takes ONNX files of any program too.",
        aliases=("--model",))
    RESTORE_OPTIMIZER: bool = option(False, "--restore_optimizer",
        "Resume the run of --snapshot: optimiser, schedule and progress too.")
    RESUME: str = option("", "--resume", "Resume from a checkpoint file, or auto: from the last one of this run.")
    OTHER_DATA: bool = option(False, "--other_data",
        "Resume although the images to train on are others than those of the checkpoint.")
    REPLAY: str = option("", "--replay", "Repeat a step that was not finite, FILE.json of the run's nonfinite folder.")
    DATE: str = option("default", "--date", "First part of the run's folder name.")
    EXP: str = option("default", "--exp", "Second part of the run's folder name.")
    TB_TAG: str = option("", "--tb_tag", "Text added to the TensorBoard folder name.")
    CKPT: str = option("./logs/ckpt", "--ckpt", "Root folder of runs.")
    TB_PATH: str = option("./logs/tb", "--tb_path", "Root folder of TensorBoard files.")
    TEST_MODE: bool = option(False, "--test_mode", "Smoke test: a few steps of each phase.")
    SEED: int = option(304, "--seed", "Seed of weights, order and augmentation.", low=0, high=2**32 - 1)
    LOG_INTERVAL: int = option(50, "--log_interval", "Steps between two lines of the log.", low=1)
    SAVE_INTERVAL: int = option(0, "--save_interval", "Steps between two checkpoints, 0 for epoch ends only.", low=0)
    DEVICE: Literal["auto", "cpu", "cuda"] = shared("auto", "--device", "Device to compute on.")
    LOCAL_RANK: int = option(-1, "--local_rank", "Set by old launchers; overridden by torchrun's variables.", low=-1,
        aliases=("--local-rank",))
    DIST_URL: str = shared("env://", "--dist_url", "Rendezvous URL of the process group.")
    DIST_TIMEOUT: int = shared(7200, "--dist_timeout",
        "Seconds that a process waits for the others before it ends; the first one may scan a whole data set.", low=1)
    DETERMINISTIC: bool = shared(False, "--deterministic", "Use deterministic operations where there are any.")
    PROFILE: int = option(0, "--profile",
        "Steps to record with torch.profiler, after three of warm-up: a trace and a table in the run folder.", low=0)
    FIND_BATCH: bool = option(False, "--find_batch",
        "Find the largest --bs_mult that fits into the memory and the --accumulate that goes with it; train nothing.")
    DUMP_AUGMENTATION: bool = option(False, "--dump_augmentation_images", "Plot the first training batch.")

class Config(Section):
    DATASET: Data
    NETWORK: Network
    WHITENING: Whitening
    LOSS: Loss
    AUGMENT: Augmentation
    OPTIM: Optimisation
    EVAL: Evaluation
    RUN: Run
# fmt: on
