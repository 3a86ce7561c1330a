"""What a server says where it cannot do what was asked, as OpenAI's API says it."""

from __future__ import annotations

from typing import Any

_TYPES = {
    400: "invalid_request_error",
    404: "invalid_request_error",
    405: "invalid_request_error",
    413: "invalid_request_error",
    415: "invalid_request_error",
    429: "rate_limit_error",
    503: "service_unavailable_error",
}


class ApiError(Exception):
    """An answer that is an error.

    Attributes:
      status: Of HTTP.
      param: The field that is wrong, if it is one.
      code: A word for programs, if there is one.
      headers: Of the answer, beside the usual ones.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ):
        """Says what is wrong."""
        super().__init__(message)
        self.status = status
        self.param = param
        self.code = code
        self.headers = headers

    def to_dict(self) -> dict[str, Any]:
        """Returns the body of the answer.

        Example:
          >>> ApiError(413, "the body is too long").to_dict()["error"]["type"]
          'invalid_request_error'
        """
        return {
            "error": {
                "message": str(self),
                "type": _TYPES.get(self.status, "server_error"),
                "param": self.param,
                "code": self.code,
            }
        }


def bad_field(name: str, message: str, code: str | None = None) -> ApiError:
    """Returns the error for a field that is not as it should be."""
    return ApiError(400, message, param=name, code=code)


def stopping() -> ApiError:
    """Returns the error for whoever comes, or is still here, as the server stops."""
    return ApiError(503, "the server is stopping", code="stopping")


def crowded(message: str) -> ApiError:
    """Returns the error for one request too many."""
    headers = {"Retry-After": "1"}
    return ApiError(429, message, code="rate_limit_exceeded", headers=headers)
