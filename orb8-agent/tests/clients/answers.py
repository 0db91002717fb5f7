"""How the clients of this folder connect and print: each message is one line of JSON, with the
field names of the .proto files.

Knows nothing of what the messages mean.
"""

import json
import sys

import grpc
from google.protobuf import json_format

# Seconds for one answer; streams have no end.
DEADLINE = 60


def connect(address):
    # A proxy of the machine's has no way into the agent's namespace.
    return grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)])


def say(value):
    print(json.dumps(value), flush=True)


def show(messages):
    """Prints messages as they come; a refusal is printed too and makes the exit code 1."""
    try:
        for message in messages:
            say(
                json_format.MessageToDict(
                    message,
                    preserving_proto_field_name=True,
                    always_print_fields_with_no_presence=True,
                )
            )
    except grpc.RpcError as error:
        say({"code": error.code().name, "details": error.details()})
        sys.exit(1)


def call(method, request, streams):
    """The messages that a method answers, one or many."""
    if streams:
        yield from method(request)
    else:
        yield method(request, timeout=DEADLINE)
