"""Environment, devices, console, errors, files. Imports nothing else of Luthier."""
