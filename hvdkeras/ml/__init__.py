"""What the `pyspark.ml` stages share: saving and loading, checks of columns, SQL expressions, scoring."""
