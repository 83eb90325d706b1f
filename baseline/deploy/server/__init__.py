"""A web page and an HTTP API that serve predictions of a trained model.

Raises:
    OutputError: if the packages of the extra `serve` are not installed.
"""

from importlib.util import find_spec

from baseline.errors import OutputError, missing_package

if missing := [name for name in ("starlette", "uvicorn", "python_multipart") if find_spec(name) is None]:
    raise OutputError(f"{missing_package('The server', ', '.join(missing), 'serve')}.")
