"""`network_g`, `network_d` and `path` -> our generator, discriminator and starting weights."""

from __future__ import annotations

from sr_dist.core.config import Tree
from sr_dist.core.errors import UserError
from sr_dist.tools.basicsr import spandrel_options
from sr_dist.tools.basicsr.options import Options, texts, whole, whole_numbers, yes

CHANNELS = (
    "num_in_ch", "num_out_ch", "in_chans", "in_nc", "out_nc", "in_channels", "out_channels", "n_colors", "in_ch", "out_ch",
    "inp_channels",
)  # fmt: skip
SCALES = ("upscale", "scale", "upscaling_factor", "upscale_factor", "up_scale")
ENLARGE = {"pixelshuffle": "shuffle", "pixelshuffledirect": "direct", "nearest+conv": "nearest"}
ACTIVATIONS = {"prelu": "prelu", "relu": "relu", "leakyrelu": "leaky_relu"}
PLAIN: dict[str, tuple[str, dict[str, tuple[str, int]]]] = {  # type, in small letters -> our name; option -> our key, its default
    "rrdbnet": ("rrdb", {"num_feat": ("width", 64), "num_block": ("num_blocks", 23), "num_grow_ch": ("growth", 32)}),
    "esrgan": ("rrdb", {"num_filters": ("width", 64), "num_blocks": ("num_blocks", 23)}),
    "msrresnet": ("msrresnet", {"num_feat": ("width", 64), "num_block": ("num_blocks", 16)}),
    "srresnet": ("srresnet", {"num_feat": ("width", 64), "num_block": ("num_blocks", 16)}),
    "srvggnetcompact": ("srvgg", {"num_feat": ("width", 64), "num_conv": ("num_blocks", 16)}),
    "compact": ("srvgg", {"num_feat": ("width", 64), "num_conv": ("num_blocks", 16)}),
}


def generator(options: Options, scale: int) -> Tree:
    kind = str(options.value("network_g.type") or "")
    if not kind:
        raise UserError("network_g.type: this key is missing")
    section: Tree = {"channels": _channels(options, "network_g")}
    _check_scale(options, kind, scale)
    if kind.lower() in PLAIN:
        name, keys = PLAIN[kind.lower()]
        section = {"name": name, **section}
        for option, (ours, default) in keys.items():
            section[ours] = options.take(f"network_g.{option}", whole, default, f"generator.{ours}")
        if name == "srvgg":
            act = str(options.value("network_g.act_type") or "prelu")
            section["activation"] = _one_of(act, ACTIVATIONS, "network_g.act_type")
            options.note("network_g.act_type", f"generator.activation: {section['activation']}")
    elif kind.lower() == "swinir" and _is_plain_swinir(options):
        section = {"name": "swinir", **section, **_swinir(options)}
    else:
        arch = _arch(kind)
        own = spandrel_options.constructor_options(options, kind, arch, (*CHANNELS, *SCALES))
        section = {"name": "spandrel", "arch": arch, **section, **own}
    options.note(
        "network_g.type", f"generator.name: {section['name']}" + (f", arch: {section['arch']}" if "arch" in section else "")
    )
    return section


def _channels(options: Options, network: str) -> int:
    values = {options.take(f"{network}.{name}", whole, 3, "channels") for name in CHANNELS if options.has(f"{network}.{name}")}
    if len(values) > 1 or not values <= {1, 3}:
        raise UserError(
            f"{network}: networks have 1 or 3 channels on both sides; the file has {', '.join(map(str, sorted(values)))}"
        )
    return next(iter(values), 3)


def _check_scale(options: Options, kind: str, scale: int) -> None:
    for name in SCALES:
        if options.has(f"network_g.{name}"):
            own = options.take(f"network_g.{name}", whole, scale, "scale")
            if own != scale:
                raise UserError(f"network_g.{name}: {own}, but the file's scale is {scale}")
    if kind == "RRDBNet" and scale != 4 and not options.has("network_g.scale"):
        options.checks.append("network_g has no scale, which for BasicSR's RRDBNet means 4; the generator gets the file's scale.")


def _one_of(text: str, known: dict[str, str], key: str) -> str:
    if text not in known:
        raise UserError(f"{key}: '{text}' has no equal; choose from {', '.join(known)}")
    return known[text]


def _is_plain_swinir(options: Options) -> bool:
    own = {"type", "upscale", "in_chans", "img_size", "window_size", "img_range", "depths", "embed_dim", "num_heads", "mlp_ratio",
           "upsampler", "resi_connection"}  # fmt: skip
    heads = set(texts(options.value("network_g.num_heads") or "6"))
    return set(options.tree["network_g"]) <= own and len(heads) == 1 and options.value("network_g.upsampler") in ENLARGE


def _swinir(options: Options) -> Tree:
    upsampler = ENLARGE[options.value("network_g.upsampler")]
    options.note("network_g.upsampler", f"generator.enlarge: {upsampler}")
    options.drop("network_g.img_size", "the network takes images of any size")
    options.drop("network_g.img_range", "images are [0, 1]; the authors' 1. is that")
    if options.read("network_g.img_range", float, 1.0) != 1.0:
        options.checks.append("network_g.img_range is not 1, the range of our SwinIR; weights of such a network differ.")
    return {
        "width": options.take("network_g.embed_dim", whole, 96, "generator.width"),
        "depths": options.take("network_g.depths", whole_numbers, [6, 6, 6, 6], "generator.depths"),
        "heads": options.take("network_g.num_heads", whole_numbers, [6], "generator.heads")[0],
        "window": options.take("network_g.window_size", whole, 7, "generator.window"),
        "mlp_ratio": options.take("network_g.mlp_ratio", float, 4.0, "generator.mlp_ratio"),
        "enlarge": upsampler,
        "group_end": options.take("network_g.resi_connection", str, "1conv", "generator.group_end"),
    }


def _arch(kind: str) -> str:
    from sr_dist.models.generators.spandrel import ARCHS  # loads torch, which most files do without

    names = {name.lower(): name for name in ARCHS}
    if kind.lower() not in names:
        raise UserError(
            f"network_g.type: '{kind}' has no equal here; there are RRDBNet, MSRResNet, SRResNet, SRVGGNetCompact, SwinIR, "
            f"and with spandrel {', '.join(ARCHS)}"
        )
    return names[kind.lower()]


def discriminator(options: Options, crop: int) -> Tree:
    kind = str(options.value("network_d.type") or "")
    section: Tree = {"channels": _channels(options, "network_d")}
    width = options.take("network_d.num_feat", whole, 64, "discriminator.width")
    if kind.lower().startswith("vggstylediscriminator"):
        section = {"name": "srgan_vgg", **section, "width": width, "crop": crop}
        options.drop("network_d.input_size", "the dense layer fits data.crop")
        options.checks.append("The discriminator srgan_vgg is the paper's; BasicSR's VGGStyleDiscriminator has other layers.")
    else:
        if not kind.lower().startswith("unetdiscriminatorsn"):
            options.checks.append(
                f"network_d.type: '{kind}' has no equal; the recipe has UNetDiscriminatorSN (unet_sn) in its place."
            )
        section = {"name": "unet_sn", **section, "width": width}
        if not options.read("network_d.skip_connection", yes, True):
            options.drop("network_d.skip_connection", "unet_sn has skip connections always")
        options.note("network_d.skip_connection", "discriminator.name: unet_sn")
    options.note("network_d.type", f"discriminator.name: {section['name']}")
    return section


def starting_weights(options: Options, gan: bool, discriminator_name: str) -> Tree:
    init: Tree = {}
    if options.has("path.pretrain_network_g"):
        init["generator"] = options.take("path.pretrain_network_g", str, "", "init.generator")
        options.checks.append("init.generator: the file must exist where the training runs; a run folder of ours serves too.")
    if options.has("path.pretrain_network_d"):
        if gan and discriminator_name == "unet_sn":
            init["discriminator"] = options.take("path.pretrain_network_d", str, "", "init.discriminator")
        else:
            options.drop("path.pretrain_network_d", "the discriminator has other layers than BasicSR's")
    for one, ours in (("g", "generator"), ("d", "discriminator")):
        if not options.has(f"path.pretrain_network_{one}"):
            options.note(f"path.pretrain_network_{one}", f"init.{ours}: none")
    strict = [options.read(f"path.strict_load_{one}", yes, True) for one in "gd"]
    if not all(strict) and init:
        init["partial"] = True
    for one in "gd":
        options.note(f"path.strict_load_{one}", f"init.partial: {str(not all(strict)).lower()}")
        key = options.read(f"path.param_key_{one}", str, "params_ema")
        options.drop(f"path.param_key_{one}", "params_ema is taken where the file has it")
        if f"pretrain_network_{one}" in (options.value("path") or {}) and key == "params" and one == "g":
            options.checks.append("path.param_key_g is params; init.generator takes params_ema where the file has it.")
    options.drop("path.resume_state", "the same command continues a run")
    options.drop("path.ignore_resume_networks", "a run continues with all its networks")
    return init
