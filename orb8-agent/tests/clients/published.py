"""A client that has the published .proto files and nothing else of ours.

    published.py PROTO_ROOT ADDRESS METHOD REQUEST

METHOD is one of OrbitAgentService's, REQUEST its request as JSON. The classes are generated anew
at each start, as somebody does who has just downloaded the files.
"""

import pathlib
import sys
import tempfile

from google.protobuf import json_format
from grpc_tools import protoc

import answers


def generate(root):
    """Generates Python from every file below `root` and imports what has the service."""
    files = sorted(str(path) for path in pathlib.Path(root).rglob("*.proto"))
    with tempfile.TemporaryDirectory() as out:
        arguments = [f"-I{root}", f"--python_out={out}", f"--grpc_python_out={out}"]
        if protoc.main(["protoc", *arguments, *files]) != 0:
            sys.exit(f"protoc cannot read what is in {root}")
        sys.path.insert(0, out)
        from orb8.v1 import agent_pb2, agent_pb2_grpc
    return agent_pb2, agent_pb2_grpc


def main(root, address, name, text):
    messages, services = generate(root)
    request = json_format.Parse(text, getattr(messages, f"{name}Request")())
    with answers.connect(address) as channel:
        method = getattr(services.OrbitAgentServiceStub(channel), name)
        answers.show(answers.call(method, request, streams=name.startswith("Stream")))


main(*sys.argv[1:])
