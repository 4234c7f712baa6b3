"""MLflow and Ray side by side; nothing here knows of ECGs.

Import the modules themselves, so that one that needs Ray costs nothing to who needs MLflow only:
``tracking`` (one run per job), ``train_callback`` (Ray Train reports into a run), ``spool``
(outages), ``fetch`` (local copies of URLs), ``run_context`` (tags of Ray and Kubernetes),
``local_cluster`` (a local Ray, authenticated).
"""
