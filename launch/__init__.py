"""Every way into a job: on Spark executors, on this machine, or inside a job that already runs."""
