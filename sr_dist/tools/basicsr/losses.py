"""`model_type` and the losses of `train` -> our objective."""

from __future__ import annotations

from sr_dist.core.config import Tree
from sr_dist.core.errors import UserError
from sr_dist.tools.basicsr.options import Options, whole, yes

MODELS = {
    "SRModel": "pixel", "SwinIRModel": "pixel", "RealESRNetModel": "pixel",
    "SRGANModel": "srgan", "ESRGANModel": "esrgan", "RealESRGANModel": "srgan",
}  # fmt: skip
PIXEL = {"L1Loss": "l1", "MSELoss": "mse", "CharbonnierLoss": "charbonnier"}
FORMS = {"vanilla": "standard", "wgan_softplus": "standard", "lsgan": "least_squares", "hinge": "hinge"}


def is_gan(options: Options) -> bool:
    return options.has("network_d") and MODELS.get(str(options.value("model_type")), "srgan") != "pixel"


def check_discriminator(options: Options) -> None:
    """A model that trains a discriminator has one."""
    model = str(options.value("model_type"))
    if MODELS.get(model, "pixel") != "pixel" and not isinstance(options.value("network_d"), dict):
        raise UserError(
            f"network_d: this section is missing, and model_type: {model} trains a discriminator; SRModel trains none"
        )


def objective(options: Options) -> Tree:
    model = str(options.value("model_type"))
    name = MODELS.get(model)
    if options.value("train.gan_opt.gan_type") == "ragan":
        name = "esrgan"
    if name is None:
        name = "srgan" if options.has("network_d") else "pixel"
        options.checks.append(f"model_type: '{model}' is not known; the objective is {name}.")
    options.note("model_type", f"objective.name: {name}")
    section: Tree = {"name": name, "content": _content(options)}
    if name == "pixel":
        options.drop("train.gan_opt", f"{model} trains no discriminator")
        options.drop("network_d", f"{model} trains no discriminator")
        options.drop("train.optim_d", f"{model} trains no discriminator")
        return section
    return {**section, **_adversarial(options, name)}


def _content(options: Options) -> Tree:
    """Pixel and perceptual terms; those with the weight 0 are left out."""
    content: Tree = {}
    sharpen_all = options.take("gt_usm", yes, False, "objective.content.*.sharpen")
    pixel, perceptual = (
        options.take(f"{one}_gt_usm", yes, options.value("model_type") == "RealESRGANModel", "objective.content.*.sharpen")
        or sharpen_all
        for one in ("l1", "percep")
    )
    if options.read("gan_gt_usm", yes, False):
        options.drop("gan_gt_usm", "the discriminator's real images are HR itself")
    options.note("gan_gt_usm", "the discriminator's real images are HR itself")
    if options.has("train.pixel_opt"):
        content |= _pixel(options, pixel)
    if options.has("train.perceptual_opt"):
        content |= _perceptual(options, perceptual)
    if options.has("train.ffl_opt"):
        content["focal_frequency"] = _focal_frequency(options)
    if options.has("train.ldl_opt"):
        content |= _ldl(options)
    if not content:
        options.checks.append("The file has no pixel or perceptual loss; objective.content is l1 with the weight 1.")
        content["l1"] = {"weight": 1.0}
    return content


LISTED = {  # types of traiNNer-redux's list, in lower case -> the section of BasicSR that we read
    **{kind.lower(): "pixel_opt" for kind in PIXEL},
    "perceptualloss": "perceptual_opt", "ganloss": "gan_opt", "ffloss": "ffl_opt",
}  # fmt: skip


def read_list(options: Options) -> None:
    """`train.losses`, a list of sections with a type, as the sections of BasicSR. Several pixel losses: the first."""
    losses = options.value("train.losses")
    if not isinstance(losses, list):
        return
    train = options.tree["train"]
    del train["losses"]
    for number, loss in enumerate(losses):
        kind = str(loss.get("type", "")).lower() if isinstance(loss, dict) else ""
        section = LISTED.get(kind)
        if section is None or section in train:
            train[f"losses_{number}"] = loss
            options.drop(f"train.losses_{number}", "the first one of this kind is taken" if section else f"there is no '{kind}'")
            continue
        named = {name.lower(): name for name in (*PIXEL, "PerceptualLoss", "GANLoss", "FFLoss")}
        train[section] = {**loss, "type": named[kind]}
        if section == "perceptual_opt" and "loss_weight" in loss:
            train[section]["perceptual_weight"] = train[section].pop("loss_weight")
    options.checks.append("train.losses was read as pixel_opt, perceptual_opt, gan_opt and ffl_opt; the names below are those.")


def _focal_frequency(options: Options) -> Tree:
    path, ours = "train.ffl_opt", "objective.content.focal_frequency"
    options.note(f"{path}.type", ours)
    term: Tree = {"weight": options.take(f"{path}.loss_weight", float, 1.0, f"{ours}.weight")}
    if options.has(f"{path}.alpha"):
        term["alpha"] = options.take(f"{path}.alpha", float, 1.0, f"{ours}.alpha")
    if options.has(f"{path}.patch_factor"):
        term["patch_factor"] = options.take(f"{path}.patch_factor", whole, 1, f"{ours}.patch_factor")
    return term


def _ldl(options: Options) -> Tree:
    """BasicSR leaves it out where it averages no weights."""
    path = "train.ldl_opt"
    if not options.read("train.ema_decay", float, 0.0):
        options.drop(path, "it compares with the EMA, and train.ema_decay is 0")
        return {}
    if (kind := options.read(f"{path}.type", str, "L1Loss")) != "L1Loss":
        options.drop(f"{path}.type", f"ldl has the distance of L1Loss; '{kind}' became it")
    for name in ("type", "reduction"):
        options.note(f"{path}.{name}", "objective.content.ldl")
    return {"ldl": options.take(f"{path}.loss_weight", float, 1.0, "objective.content.ldl")}


def _pixel(options: Options, sharpen: bool) -> Tree:
    kind = options.read("train.pixel_opt.type", str, "L1Loss")
    name = PIXEL.get(kind)
    if name is None:
        name = "l1"
        options.checks.append(f"train.pixel_opt.type: '{kind}' has no equal; the recipe has l1 in its place.")
    options.note("train.pixel_opt.type", f"objective.content.{name}")
    term: Tree = {"weight": options.take("train.pixel_opt.loss_weight", float, 1.0, f"objective.content.{name}.weight")}
    if sharpen:
        term["sharpen"] = True
    if name == "charbonnier":
        eps = options.take("train.pixel_opt.eps", float, 1e-12, "objective.content.charbonnier.eps, its root")
        term["eps"] = eps**0.5  # ours is squared under the root
    if options.read("train.pixel_opt.reduction", str, "mean") != "mean":
        options.drop("train.pixel_opt.reduction", "terms are means over the global batch; change the weight")
    options.note("train.pixel_opt.reduction", "terms are means over the global batch")
    return {name: term}


def _perceptual(options: Options, sharpen: bool) -> Tree:
    path = "train.perceptual_opt"
    weight = options.take(f"{path}.perceptual_weight", float, 1.0, "objective.content.vgg.weight")
    layers = {}
    for layer in options.value(f"{path}.layer_weights") or {"conv5_4": "1"}:
        if not layer.startswith("conv"):
            options.drop(f"{path}.layer_weights.{layer}", "layers are convolutions before their ReLU, such as conv5_4")
            continue
        layers[layer] = options.take(f"{path}.layer_weights.{layer}", float, 1.0, f"objective.content.vgg.layers.{layer}")
    criterion = options.read(f"{path}.criterion", str, "l1")
    distance = {"l1": "l1", "l2": "mse", "mse": "mse"}.get(criterion)
    if distance is None:
        distance = "l1"
        options.drop(f"{path}.criterion", f"vgg has l1 and mse; '{criterion}' became l1")
    options.note(f"{path}.criterion", f"objective.content.vgg.distance: {distance}")
    options.note(f"{path}.type", "objective.content.vgg")
    for key, expected, reason in (
        ("vgg_type", "vgg19", "the term is that of VGG19"), ("use_input_norm", True, "images are normalized"),
        ("range_norm", False, "images are [0, 1]"),
    ):  # fmt: skip
        given = options.value(f"{path}.{key}")
        same = given is None or (yes(given) if isinstance(expected, bool) else given) == expected
        (options.note if same else options.drop)(f"{path}.{key}", reason)
    if options.read(f"{path}.style_weight", float, 0.0):
        options.drop(f"{path}.style_weight", "there is no style loss")
    options.note(f"{path}.style_weight", "0: no style loss")
    if not weight or not layers:
        return {}
    options.checks.append("The vgg term needs vgg19-dcbb9e9d.pth; --allow_download=true fetches it.")
    term: Tree = {"weight": weight, "layers": layers, "activated": False, "distance": distance, "divide": 1.0}
    return {"vgg": {**term, "sharpen": True} if sharpen else term}


def _adversarial(options: Options, name: str) -> Tree:
    path = "train.gan_opt"
    section: Tree = {"adversarial_weight": options.take(f"{path}.loss_weight", float, 1.0, "objective.adversarial_weight")}
    kind = options.read(f"{path}.gan_type", str, "vanilla")
    if name == "esrgan":
        section |= {"batch_mean": "local", "halved": True}
        options.checks.append(
            "objective.halved and batch_mean: local are BasicSR's ESRGAN; the paper's is halved: false and batch_mean: global."
        )
        if kind not in ("vanilla", "ragan"):
            options.drop(f"{path}.gan_type", "the relativistic loss is of cross-entropy")
    else:
        section["form"] = FORMS.get(kind, "standard")
        if kind not in FORMS:
            options.drop(f"{path}.gan_type", "there are vanilla, lsgan and hinge; it became vanilla (form: standard)")
    options.note(f"{path}.gan_type", f"objective.{'name: esrgan' if name == 'esrgan' else 'form: ' + section['form']}")
    options.note(f"{path}.type", f"objective.name: {name}")
    for key, expected in (("real_label_val", 1.0), ("fake_label_val", 0.0)):
        same = options.read(f"{path}.{key}", float, expected) == expected
        (options.note if same else options.drop)(f"{path}.{key}", f"labels are {expected:g}, without smoothing")
    for key, same_value, ours in (("net_d_iters", 1.0, "updates"), ("net_d_init_iters", 0.0, "warmup")):
        same = options.read(f"train.{key}", float, same_value) == same_value
        (options.note if same else options.drop)(f"train.{key}", f"discriminator_training.{ours} has it, set by hand")
    return section
