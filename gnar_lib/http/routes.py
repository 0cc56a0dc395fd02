"""Which handler a request is for, by its method and path; knows no conn."""

from __future__ import annotations

from dataclasses import dataclass

from gnar_lib.http.message import Handler, HTTPError, Request, Response


@dataclass(slots=True)
class _Route:
    """A path, and what handles it by method."""

    segments: tuple[str, ...]
    handlers: dict[str, Handler]

    def parameters(self, segments: tuple[str, ...]) -> dict[str, str] | None:
        """Return the parameters by name if the path of a request is this one, else None."""
        found = {}
        for ours, theirs in zip(self.segments, segments, strict=True):
            if ours.startswith("{"):
                if not theirs:
                    return None
                found[ours[1:-1]] = theirs
            elif ours != theirs:
                return None
        return found

    @property
    def allowed(self) -> str:
        """The methods, as the field Allow shows them."""
        methods = {*self.handlers, "OPTIONS"} | ({"HEAD"} if "GET" in self.handlers else set())
        return ", ".join(sorted(methods))

    def show_methods(self, _request: Request) -> Response:
        """Answer OPTIONS."""
        return Response(204, headers=[("Allow", self.allowed)])


class Routes:
    """The handlers of a service by method and path. HEAD is served by the handler of GET."""

    def __init__(self) -> None:
        self._routes: dict[int, list[_Route]] = {}  # by the number of segments

    def add(self, method: str, path: str, handler: Handler) -> None:
        """Have `handler(request, **parameters)` answer a method on a path such as "/proxies/{id}".

        A path without parameters goes before one with parameters that fits as well.
        """
        segments = tuple(path.split("/")[1:])
        routes = self._routes.setdefault(len(segments), [])
        route = next((each for each in routes if each.segments == segments), None)
        if route is None:
            route = _Route(segments, {})
            routes.append(route)
            routes.sort(key=lambda each: [part.startswith("{") for part in each.segments])
        route.handlers[method] = handler

    def find(self, request: Request) -> tuple[Handler, dict[str, str]]:
        """Return the handler for a request, and the parameters of its path. Raises `HTTPError` 404 or 405."""
        for route in self._routes.get(len(request.segments), ()):
            parameters = route.parameters(request.segments)
            if parameters is None:
                continue
            method = "GET" if request.method == "HEAD" else request.method
            if method in route.handlers:
                return route.handlers[method], parameters
            if method == "OPTIONS":
                return route.show_methods, {}
            raise HTTPError(405, f"the methods here are {route.allowed}", [("Allow", route.allowed)])
        raise HTTPError(404, "there is nothing at this path")
