"""The command line: ``energyppl demo``, ``fit``, ``sample``, ``show``, ``diagnose``, ``logz``, ``score``."""
