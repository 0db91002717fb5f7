"""A client that knows no .proto file: it asks the server which services there are and what their
messages look like.

    reflection.py ADDRESS list
    reflection.py ADDRESS call SERVICE/METHOD REQUEST

REQUEST is the request as JSON.
"""

import sys

from google.protobuf import descriptor_pool, json_format, message_factory
from grpc_reflection.v1alpha import reflection_pb2
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)

import answers


def services(channel, version):
    """Lists services with one version of the protocol; on the wire both look the same."""
    method = channel.stream_stream(
        f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
        request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
        response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
    )
    request = reflection_pb2.ServerReflectionRequest(list_services="*")
    answer = next(method(iter([request]), timeout=answers.DEADLINE))
    return sorted(service.name for service in answer.list_services_response.service)


def call(channel, path, text):
    pool = descriptor_pool.DescriptorPool(ProtoReflectionDescriptorDatabase(channel))
    service, name = path.split("/")
    method = pool.FindServiceByName(service).FindMethodByName(name)
    request = message_factory.GetMessageClass(method.input_type)()
    json_format.Parse(text, request, descriptor_pool=pool)
    make = channel.unary_stream if method.server_streaming else channel.unary_unary
    stub = make(
        f"/{path}",
        request_serializer=type(request).SerializeToString,
        response_deserializer=message_factory.GetMessageClass(method.output_type).FromString,
    )
    answers.show(answers.call(stub, request, streams=method.server_streaming))


def main(address, verb, *arguments):
    with answers.connect(address) as channel:
        if verb == "list":
            answers.say({version: services(channel, version) for version in ("v1", "v1alpha")})
        else:
            call(channel, *arguments)


main(*sys.argv[1:])
