"""Ensembles on real ranks."""

import numpy as np
import pytest

pytestmark = pytest.mark.mpi


def data() -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    features = random.normal(size=(90, 4)).astype("float32")
    return {"features": features, "label": (features.sum(axis=1) > 0).astype("int32")}


def two_outputs():
    import keras

    inputs = keras.Input((4,), name="features")
    hidden = keras.layers.BatchNormalization()(keras.layers.Dense(8, "relu")(inputs))
    kind = keras.layers.Dense(2, "softmax", name="kind")(hidden)
    return keras.Model(inputs, [kind, keras.layers.Dense(1, name="sum")(hidden)])


def train(arguments: dict) -> dict:
    """What a rank of the job runs; rank 0 checks the result."""
    import hvdkeras
    from hvdkeras.models.merging import merged
    from hvdkeras.models.serialization import model_from_bytes, model_to_bytes

    columns = data()
    columns["sum"] = columns["features"].sum(axis=1, keepdims=True)
    trainer = hvdkeras.EnsembleTrainer(
        two_outputs(),
        loss=["sparse_categorical_crossentropy", "mse"],
        label_col=["label", "sum"],
        metrics=[["accuracy"], []],
        batch_size=8,
        num_epoch=2,
        learning_rate=0.05,
        verbose=0,
        **arguments,
    )
    members = trainer.train(columns)
    features = columns["features"]
    one = merged(members, disagreement=True)
    copy = model_from_bytes(model_to_bytes(one))

    def predict(model):
        return [np.array(output) for output in model.predict(features, verbose=0)]

    return {
        "members": [predict(member) for member in members],
        "merged": predict(one),
        "saved": predict(copy),
        "history": trainer.history.to_dict()["ranks"],
    }


@pytest.mark.parametrize(
    "arguments", [{"num_models": 3, "num_workers": 2}, {"num_models": 2, "partition": False}]
)
def test_members_differ_and_their_mean_is_the_merged_model(on_ranks, arguments):
    for result in on_ranks(2, train, arguments):
        members = result["members"]
        assert len(members) == arguments["num_models"]
        for output in range(2):
            stacked = np.stack([member[output] for member in members])
            assert (stacked.std(axis=0).max(axis=-1) > 1e-4).all()
            np.testing.assert_allclose(result["merged"][output], stacked.mean(axis=0), atol=1e-6)
            np.testing.assert_allclose(result["saved"][output], stacked.mean(axis=0), atol=1e-6)
            np.testing.assert_allclose(result["saved"][output + 2], stacked.std(axis=0), atol=1e-6)
        rows = [rank["rows"] for rank in result["history"]]
        if arguments.get("partition", True):
            assert rows == [[30, 30]] * 3
            assert [(rank["member"], rank["rank"]) for rank in result["history"]] == [(0, 0), (1, 1), (2, 0)]
        else:
            assert rows == [[90, 90]] * 2
