"""Encryption: both clients, a server's certificate, and a client's own."""

from __future__ import annotations

import concurrent.futures
import datetime as dt

import grpc
import hedgerow
import numpy as np
import pytest
from client_peer import Asyncio, Blocking, Peer
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hedgerow_protos.open_inference_pb2_grpc import add_GRPCInferenceServiceServicer_to_server

X = np.ones((1, 3), np.float32)


def certificate(directory, name: str):
    """A self-signed certificate for `name`; its PEM files."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = dt.datetime.now(dt.UTC)
    signed = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    paths = directory / f"{name}.pem", directory / f"{name}.key"
    paths[0].write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    paths[1].write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    return paths


@pytest.fixture(scope="module")
def pki(tmp_path_factory):
    home = tmp_path_factory.mktemp("pki")
    return {name: certificate(home, name) for name in ("server", "caller", "stranger")}


@pytest.fixture
def address(pki):
    """A server that proves itself and asks the same of callers."""
    pem, key = pki["server"]
    credentials = grpc.ssl_server_credentials(
        [(key.read_bytes(), pem.read_bytes())], pki["caller"][0].read_bytes(), require_client_auth=True
    )
    server = grpc.server(concurrent.futures.ThreadPoolExecutor(4))
    add_GRPCInferenceServiceServicer_to_server(Peer(), server)
    port = server.add_secure_port("127.0.0.1:0", credentials)
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(0).wait()


def options(pki, ca="server", own="caller", name="server"):
    pem, key = pki[own] if own else (None, None)
    return hedgerow.Tls(ca=pki[ca][0], certificate=pem, key=key, server_name=name)


@pytest.mark.parametrize("kind", [Blocking, Asyncio])
def test_both_sides_prove_who_they_are(pki, address, kind):
    client = kind(address, tls=options(pki))
    assert client("infer", "echo", {"x": X})["x"].tolist() == X.tolist()
    client.close()


@pytest.mark.parametrize("kind", [Blocking, Asyncio])
@pytest.mark.parametrize(
    "wrong",
    [{"ca": "stranger"}, {"own": "stranger"}, {"own": None}, {"name": "elsewhere"}],
    ids=lambda wrong: next(iter(wrong.items())),
)
def test_nothing_is_answered_when_a_proof_is_wrong(pki, address, kind, wrong):
    client = kind(address, tls=options(pki, **wrong), retries=0)
    with pytest.raises(hedgerow.Unavailable):
        client("infer", "echo", {"x": X})
    client.close()


def test_plaintext_is_not_answered_either(address):
    with hedgerow.Client(address, retries=0) as client, pytest.raises(hedgerow.Unavailable):
        client.infer("echo", {"x": X})
