"""What the `pyspark.ml` stages share."""
