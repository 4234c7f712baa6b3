"""The script that makes MLflow's bucket, against a local S3 server."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from ecg_agent_ray.shipped import shipped

boto3 = pytest.importorskip("boto3")
server = pytest.importorskip("moto.server")


def test_the_bucket_is_made_once() -> None:
    store = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    store.start()
    try:
        host, port = store.get_host_and_port()
        environment = os.environ | {
            "AWS_ACCESS_KEY_ID": "a",
            "AWS_SECRET_ACCESS_KEY": "b",
            "ARTIFACTS": "s3://mlflow/",
            "MLFLOW_S3_ENDPOINT_URL": f"http://{host}:{port}",
        }
        script = shipped("kube/components/in-cluster-storage/bucket.py")
        for _ in range(2):
            subprocess.run([sys.executable, script], env=environment, check=True, timeout=120)
        client = boto3.client(
            "s3",
            endpoint_url=environment["MLFLOW_S3_ENDPOINT_URL"],
            region_name="us-east-1",
            aws_access_key_id="a",
            aws_secret_access_key="b",
        )
        assert [one["Name"] for one in client.list_buckets()["Buckets"]] == ["mlflow"]
    finally:
        store.stop()
