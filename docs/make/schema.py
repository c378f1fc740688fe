"""The JSON schema of recipes. Editors find it by the first line of a recipe: `# yaml-language-server: $schema=schema.json`."""

from __future__ import annotations

import importlib
from typing import Any

from sr_dist.core import plugins
from sr_dist.core.config import Settings
from sr_dist.core.plugins import PACKAGES
from sr_dist.recipe.sections import Recipe

Tree = dict[str, Any]
NONE = {"enum": ["none", None]}
NUMBER = {"type": "number", "minimum": 0}
BY_STEP = {"type": "object", "patternProperties": {"^[0-9]+$": NUMBER}, "additionalProperties": False, "minProperties": 1}
WEIGHT: Tree = {"anyOf": [NUMBER, BY_STEP]}
SHORT_FORMS: Tree = {"layers": {"type": "string"}, "classes": {"const": "manifest"}, "outputs": {"const": "manifest"}}
KINDS_OF_NAME = ("generator", "discriminator", "classifier", "objective", "degradation")


def schema() -> Tree:
    tree = Recipe.model_json_schema()
    definitions: Tree = tree["$defs"]
    part = definitions.pop("Part")
    for kind in KINDS_OF_NAME:
        definitions[f"part_{kind}"] = part_schema(kind, part["properties"]["name"]["description"], definitions)
    definitions["content"] = content_schema(definitions)
    for name in ("generator", "discriminator", "classifier", "objective"):
        use_part(tree["properties"], name)
    use_part(definitions["Data"]["properties"], "degradation")
    definitions["Keep"] = {"anyOf": [definitions["Keep"], {"type": "integer", "exclusiveMinimum": 0}]}
    definitions["Optimizer"]["properties"]["name"] |= names("optimizer")
    own = {"$schema": "http://json-schema.org/draft-07/schema#", "title": "A recipe of sr_dist"}
    return {**own, **lenient(tree)}


def names(kind: str) -> Tree:
    """A name of a file of the package, or a dotted name."""
    return {"anyOf": [{"enum": plugins.names(PACKAGES[kind])}, {"type": "string", "pattern": r"\."}]}


def use_part(properties: Tree, name: str) -> None:
    """Optional parts stay optional."""
    old, reference = properties[name], {"$ref": f"#/$defs/part_{name}"}
    about = {key: old[key] for key in ("description",) if key in old}
    properties[name] = {**about, "anyOf": [reference, {"type": "null"}]} if "anyOf" in old else {**about, "allOf": [reference]}


def part_schema(kind: str, about: str, definitions: Tree) -> Tree:
    """The name of a part decides which other keys it may have."""
    cases = []
    for name in plugins.names(PACKAGES[kind]):
        config = options_schema(f"{kind}_{name}", importlib.import_module(f"{PACKAGES[kind]}.{name}").Config, definitions)
        properties = {"name": {"const": name}, **config.get("properties", {})}
        if "content" in properties:
            properties["content"] = {"$ref": "#/$defs/content"}
        then = {"properties": properties, "additionalProperties": config.get("additionalProperties", False)}
        cases.append({"if": {"properties": {"name": {"const": name}}, "required": ["name"]}, "then": then})
    name = {**names(kind), "description": about}
    return {"type": "object", "properties": {"name": name}, "required": ["name"], "allOf": cases}


def content_schema(definitions: Tree) -> Tree:
    """Terms with a weight each, or with a weight and options."""
    terms = {}
    for name in plugins.names(PACKAGES["content"]):
        config = options_schema(f"content_{name}", importlib.import_module(f"{PACKAGES['content']}.{name}").Config, definitions)
        properties = {"weight": WEIGHT, "sharpen": {"type": "boolean"}, **config.get("properties", {})}
        section = {"type": "object", "properties": properties, "additionalProperties": False}
        terms[name] = {"anyOf": [*WEIGHT["anyOf"], section, NONE]}
    return {
        "type": "object",
        "properties": terms,
        "patternProperties": {r"\.": {}},
        "additionalProperties": False,
        "minProperties": 1,
    }


def options_schema(prefix: str, config: type[Settings], definitions: Tree) -> Tree:
    """The schema of a part's options. Its own definitions get names that no other part has."""
    tree = config.model_json_schema(ref_template=f"#/$defs/{prefix}_{{model}}")
    definitions |= {f"{prefix}_{name}": value for name, value in tree.pop("$defs", {}).items()}
    return tree


def lenient(tree: Any, key: str = "") -> Any:
    """What the schema of the types does not know: `none` is null, a list may be written `a,b`, and draft 7 has no prefixItems."""
    if isinstance(tree, list):
        return [lenient(item) for item in tree]
    if not isinstance(tree, dict):
        return tree
    tree = {name: lenient(value, name) for name, value in tree.items() if key == "properties" or name != "title"}
    if key == "properties":
        return {name: {"anyOf": [value, SHORT_FORMS[name]]} if name in SHORT_FORMS else value for name, value in tree.items()}
    if tree.get("type") == "null":
        return NONE
    if "prefixItems" in tree:
        items = tree.pop("prefixItems")
        tree |= {"items": items[0] if all(item == items[0] for item in items) else {"anyOf": items}}
    if tree.get("type") == "array":
        about = {name: tree.pop(name) for name in ("description", "default") if name in tree}
        return {**about, "anyOf": [tree, {"type": "string"}, NONE]}
    return tree
