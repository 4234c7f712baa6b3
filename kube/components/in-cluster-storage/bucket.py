"""Make the bucket of MLflow's artifacts in the object store beside it; safe to repeat.

Reads ARTIFACTS (s3://BUCKET/…), MLFLOW_S3_ENDPOINT_URL and the keys as boto3 does.
"""

from __future__ import annotations

import os
import sys
import time

import boto3
from botocore.exceptions import ClientError, ConnectionError, HTTPClientError

WAIT_S = 600


def make(client: object, bucket: str) -> None:
    try:
        client.create_bucket(Bucket=bucket)  # type: ignore[attr-defined]
    except ClientError as error:
        if error.response["Error"]["Code"] not in (
            "BucketAlreadyOwnedByYou",
            "BucketAlreadyExists",
        ):
            raise


def main() -> int:
    bucket = os.environ["ARTIFACTS"].removeprefix("s3://").partition("/")[0]
    endpoint = os.environ["MLFLOW_S3_ENDPOINT_URL"]
    client = boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1")
    end = time.monotonic() + WAIT_S
    while time.monotonic() < end:
        try:
            make(client, bucket)
        except (ConnectionError, HTTPClientError) as error:
            sys.stdout.write(f"the object store does not answer yet: {error}\n")
            sys.stdout.flush()
            time.sleep(3)
        else:
            sys.stdout.write(f"bucket {bucket} is there\n")
            return 0
    return 1


if __name__ == "__main__":
    sys.exit(main())
