"""From a CSV file to a saved pipeline: transformers, trainer, predictor and evaluator. Run it with `python`.

The counterpart of dist-keras's workflow notebook, on scikit-learn's breast cancer data.
"""

import tempfile

import keras
from pyspark.ml import Pipeline, PipelineModel
from pyspark.ml.feature import StringIndexer, VectorAssembler
from pyspark.sql import SparkSession
from sklearn.datasets import load_breast_cancer

from hvdkeras import EASGD, AccuracyEvaluator, LabelIndexTransformer, StandardTransformer

folder = tempfile.mkdtemp()
cancer = load_breast_cancer(as_frame=True)
measured = list(cancer.feature_names)
cancer.data.assign(diagnosis=cancer.target_names[cancer.target]).to_csv(f"{folder}/raw.csv", index=False)

spark = SparkSession.builder.master("local[2]").appName("workflow").getOrCreate()
spark.sparkContext.setLogLevel("ERROR")
raw = spark.read.csv(f"{folder}/raw.csv", header=True, inferSchema=True)
train, test = raw.randomSplit([0.8, 0.2], seed=1)

model = keras.Sequential(
    [keras.Input((30,)), keras.layers.Dense(16, "relu"), keras.layers.Dense(2, "softmax")]
)
trainer = EASGD(
    model,
    loss="categorical_crossentropy",
    metrics=["accuracy"],
    num_workers=2,
    rho=4.0,
    learning_rate=0.1,
    communication_window=4,
    batch_size=8,
    num_epoch=15,
    features_col="features_normalized",
    label_col="label",
    output_col="scores",
)
pipeline = Pipeline(
    stages=[
        StringIndexer(inputCol="diagnosis", outputCol="label"),
        VectorAssembler(inputCols=measured, outputCol="features"),
        StandardTransformer("features"),
        trainer,
        LabelIndexTransformer(2, input_col="scores", output_col="prediction"),
    ]
)
pipeline.fit(train).write().save(f"{folder}/pipeline")

nightly = PipelineModel.load(f"{folder}/pipeline")
accuracy = AccuracyEvaluator(label_col="label", prediction_col="prediction").evaluate(nightly.transform(test))
print(f"accuracy on {test.count()} held-out rows, from the saved pipeline: {accuracy:.4f}")
spark.stop()
