"""Triton's interpreter, patched once for each kernel and not for every function that the kernel calls."""

import os


def use():
    """Have the interpreter patch Triton's language once a kernel; called by conftest.py.

    It does so again for each call of a function from a kernel, which takes a third of the time and changes
    nothing. Where the interpreter is not as expected, it is left alone.
    """
    if os.environ.get("TRITON_INTERPRET", "0") != "1":
        return
    try:
        from triton.runtime import interpreter
    except ImportError:
        return
    patch, scope = getattr(interpreter, "_patch_lang", None), getattr(interpreter, "_LangPatchScope", None)
    if patch is None or scope is None or not hasattr(scope, "restore"):
        return
    # Dictionaries of globals whose language is patched at the moment.
    patched = set()

    def patch_once(function):
        names = id(function.__globals__)
        if names in patched:
            return scope()
        made = patch(function)
        if not patched:
            restore = made.restore

            def whole():
                patched.clear()
                restore()

            made.restore = whole
        patched.add(names)
        return made

    interpreter._patch_lang = patch_once
