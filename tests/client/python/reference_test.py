"""Every public name has a docstring, which names every argument."""

import importlib
import inspect
import pydoc
import re
import textwrap
import unittest

import hfopt

NOT_MADE_BY_USERS = ["hfopt.CheckReport", "hfopt.Error", "hfopt.History", "hfopt.Interrupted", "hfopt.Model",
                     "hfopt.TrainingRun"]
MODULES = ["hfopt", "hfopt.numpy", "hfopt.losses", "hfopt.torch", "hfopt.jax"]


def public(module):
    """(name, thing) of what a module offers: of __all__, or what it defines itself without an underscore."""
    names = getattr(module, "__all__", None)
    if names is None:
        names = [name for name, thing in vars(module).items()
                 if not name.startswith("_") and getattr(thing, "__module__", None) == module.__name__]
    return [(f"{module.__name__}.{name}", getattr(module, name)) for name in names]


def described(thing):
    """Whether it has a docstring of its own; a dataclass would be given one that only repeats its fields."""
    text = thing.__doc__ or ""
    return bool(text.strip()) and not (inspect.isclass(thing) and text.startswith(f"{thing.__name__}("))


class ReferenceTest(unittest.TestCase):
    maxDiff = None

    def modules(self):
        for name in MODULES:
            try:
                yield importlib.import_module(name)
            except ImportError as error:
                if name not in ("hfopt.torch", "hfopt.jax"):
                    raise
                print(f"{name} is not looked at: {error}")

    def test_examples_are_python(self):
        seen = 0
        for module in self.modules():
            # Of a module: blocks that are indented.
            for block in re.findall(r"(?m)(?:^ {4}.*\n?)+", module.__doc__):
                compile(textwrap.dedent(block), module.__name__, "exec")
                self.assertLessEqual(max(map(len, block.splitlines())), 120)
                seen += 1
        self.assertGreater(seen, 0)

    def test_every_public_name_is_described(self):
        bare, seen = [], 0
        for module in self.modules():
            bare += [] if described(module) else [module.__name__]
            for name, thing in public(module):
                if not (callable(thing) or inspect.ismodule(thing)):
                    continue
                seen += 1
                bare += [] if described(thing) else [name]
                if not inspect.isclass(thing):
                    continue
                for member, function in vars(thing).items():
                    function = getattr(function, "__func__", function)
                    if not member.startswith("_") and (inspect.isfunction(function) or isinstance(function, property)):
                        # What a base class or the protocol describes need not be said again.
                        told = inspect.getdoc(getattr(thing, member)) or getattr(hfopt.Model, member, None).__doc__
                        bare += [] if told else [f"{name}.{member}"]
        self.assertEqual(bare, [])
        self.assertGreater(seen, 40)

    def test_pages_have_every_public_name(self):
        for module in self.modules():
            page = pydoc.HTMLDoc().docmodule(module)  # what python3 -m pydoc -w writes
            self.assertEqual([name for name, _ in public(module) if f">{name.rpartition('.')[2]}<" not in page], [])

    def test_every_argument_is_named(self):
        missing = []
        for name, thing in public(hfopt):
            if inspect.ismodule(thing) or name in NOT_MADE_BY_USERS:
                continue
            text = (thing.__doc__ or "") + (inspect.getsource(thing) if hasattr(thing, "__dataclass_fields__") else "")
            for argument, parameter in inspect.signature(thing).parameters.items():
                if parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
                    continue
                if argument not in text:
                    missing.append(f"{name}({argument})")
        self.assertEqual(missing, [])


if __name__ == "__main__":
    unittest.main()
