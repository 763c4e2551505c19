"""What the function is compared with: the same server, with a view that does next to nothing."""

import os

from flask import Flask, request

#: Where the floor posts to.
COMMAND_URL = "FLOOR_COMMAND_URL"


def empty() -> Flask:
    """Reads the body."""
    app = Flask(__name__)

    @app.route("/healthz")
    @app.route("/", methods=["GET", "POST"])
    def answer() -> tuple[str, int]:
        request.get_data()
        return "", 200 if request.method == "GET" else 204

    return app


def floor() -> Flask:
    """Reads the body, and makes the one request that every event needs as everybody would."""
    import requests

    url = os.environ[COMMAND_URL]
    app = Flask(__name__)

    @app.route("/", methods=["GET", "POST"])
    def answer() -> tuple[str, int]:
        if request.method == "POST":
            headers = {"Content-Type": "application/cbor"}
            answer = requests.post(url, data=request.get_data(), headers=headers, auth=("service", "token"), timeout=4)
            answer.raise_for_status()
        return "", 200 if request.method == "GET" else 204

    return app
