"""The arguments of a trainer as params of `pyspark.ml`: both say the same, whichever is changed."""

import keras
import numpy as np
import pytest
from pyspark.ml import Pipeline

import hvdkeras


def model(**compiled) -> keras.Model:
    result = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    if compiled:
        result.compile(**compiled)
    return result


@pytest.fixture
def trainer():
    return hvdkeras.EAMSGD(model(), loss="mse", rho=2.0)


def test_a_param_that_is_set_is_the_argument(trainer):
    trainer.set(trainer.rho_param, 3)
    assert (trainer.rho, trainer.getOrDefault("rho"), trainer.getRho()) == (3.0, 3.0, 3.0)
    trainer.rho = 4.0
    assert trainer.getOrDefault(trainer.rho_param) == 4.0
    assert trainer.extractParamMap()[trainer.rho_param] == 4.0
    assert trainer.setParams(num_epoch=5, rho=1.0).setMomentum(0.5) is trainer
    assert (trainer.num_epoch, trainer.rho, trainer.momentum) == (5, 1.0, 0.5)
    trainer.clear(trainer.rho_param)
    assert (trainer.rho, trainer.isSet("rho"), trainer.is_given("rho")) == (5.0, False, False)


def test_defaults_are_those_of_the_signature(trainer):
    assert not trainer.isSet("momentum")
    assert trainer.hasDefault("momentum")
    assert trainer.getOrDefault("momentum") == 0.9
    assert trainer.isSet("loss")
    # None and 0 are defaults, too.
    assert trainer.getOrDefault("validation_split") is None
    assert trainer.getOrDefault("max_restarts") == 0


def test_every_argument_is_documented_once(trainer):
    lines = dict(line.split(": ", 1) for line in trainer.explainParams().splitlines())
    assert lines["momentum_param"].startswith("of the workers' SGD. The default, 0.9,")
    assert lines["rho_param"].startswith("the elastic force")  # EAMSGD's own docs say "as in `EASGD`"
    assert lines["rho_param"].endswith("(default: 5.0, current: 2.0)")
    assert len(lines) == len(trainer.params)
    for name in hvdkeras.__all__:
        kind = getattr(hvdkeras, name)
        if isinstance(kind, type) and issubclass(kind, hvdkeras.Trainer) and kind is not hvdkeras.Trainer:
            made = kind(model(), loss="mse")
            undocumented = {p.name for p in made.params if p.doc == p.name.removesuffix("_param")}
            assert undocumented <= {"worker_optimizer_param"}, name


def test_spark_names_are_the_same_params(trainer):
    trainer.setFeaturesCol("x").setLabelCol("y").setPredictionCol("p")
    assert (trainer.features_col, trainer.label_col, trainer.output_col) == ("x", "y", "p")
    assert (trainer.getFeaturesCol(), trainer.getOrDefault(trainer.labelCol)) == ("x", "y")
    assert trainer.copy({trainer.featuresCol: "z"}).features_col == "z"
    assert trainer.getOrDefault("weightCol") is None


@pytest.mark.parametrize(
    "change",
    [
        lambda trainer: trainer.copy({trainer.momentum_param: 1.5}),
        lambda trainer: trainer.set(trainer.momentum_param, 1.5),
        lambda trainer: trainer.setParams(momentum=1.5),
        lambda trainer: setattr(trainer, "momentum", 1.5),
    ],
)
def test_every_way_to_set_a_value_checks_it(trainer, change):
    with pytest.raises(ValueError, match=r"momentum must lie between 0 and 1. Received: 1.5"):
        change(trainer)
    assert trainer.momentum == 0.9


def test_what_makes_no_sense_together_is_refused_also_later(trainer):
    trainer.set(trainer.max_restarts_param, 2)
    data = {"features": np.zeros((8, 3), np.float32), "label": np.zeros(8, np.float32)}
    with pytest.raises(ValueError, match="max_restarts needs checkpoint"):
        trainer.train(data)


def test_unknown_params_are_named(trainer):
    with pytest.raises(ValueError, match="EAMSGD has no param 'rhoo'. Did you mean 'rho'"):
        trainer.getParam("rhoo")
    with pytest.raises(AttributeError, match="getRoh"):
        trainer.getRoh()
    assert not trainer.hasParam("keras_model")


def test_a_copy_leaves_the_original_alone(trainer):
    other = hvdkeras.EASGD(model(), loss="mse")
    changed = trainer.copy({trainer.rho_param: 0.5, other.rho_param: 7.0})
    assert (changed.rho, trainer.rho, changed.uid) == (0.5, 2.0, trainer.uid)


def test_a_grid_over_the_rate_is_refused_where_it_would_change_nothing():
    compiled = hvdkeras.SynchronousSGD(model(optimizer="adam", loss="mse"))
    with pytest.raises(ValueError, match="learning_rate can't be tuned beside an optimizer"):
        compiled.copy({compiled.learning_rate_param: 0.1})
    named = hvdkeras.SynchronousSGD(model(), loss="mse", worker_optimizer="adam")
    tuned = named.copy({named.learning_rate_param: 0.5})
    assert tuned.recipe().build().optimizer.learning_rate.numpy() == 0.5
    both = compiled.copy({compiled.learning_rate_param: 0.5, compiled.worker_optimizer_param: "sgd"})
    assert both.recipe().build().optimizer.learning_rate.numpy() == 0.5


ROWS = {"features": np.zeros((8, 3), np.float32), "label": np.zeros(8, np.float32)}


def test_a_grid_over_a_trainer_that_resumes_is_refused(tmp_path):
    resumes = hvdkeras.EASGD(model(), loss="mse", checkpoint=tmp_path, resume=True)
    trainer = hvdkeras.EASGD(model(), loss="mse", checkpoint=tmp_path)
    resume = {trainer.resume_param: True, trainer.num_epoch_param: 3}
    pipeline = Pipeline(stages=[trainer])
    for refused in [
        lambda: resumes.copy({resumes.rho_param: 0.5}),
        lambda: resumes.fitMultiple(ROWS, [{}]),  # CrossValidator, TrainValidationSplit: of one fold
        lambda: resumes.fitMultiple(ROWS, [{resumes.checkpoint_param: "other"}]),
        lambda: trainer.fitMultiple(ROWS, [resume]),
        lambda: Pipeline(stages=[resumes]).fitMultiple(ROWS, [{}]),
        lambda: next(pipeline.fitMultiple(ROWS, [resume])),
    ]:
        with pytest.raises(ValueError, match="each candidate, and each fold, would resume the one before"):
            refused()
    with pytest.raises(ValueError, match="checkpoint must be a folder of its own for each candidate.*/"):
        trainer.fitMultiple(ROWS, [{trainer.rho_param: rho} for rho in (1.0, 2.0)])
    # What `fit` with params does for one training, of the trainer and of a Pipeline that holds it.
    assert trainer.copy(resume).resume
    assert pipeline.copy(resume).getStages()[0].resume
    assert resumes.copy().resume


def test_the_column_that_evaluators_read_is_that_of_the_classes_where_there_is_one(trainer):
    trainer.setParams(output_col="scores", prediction_col="class", probability_col="p")
    assert (trainer.getPredictionCol(), trainer.getProbabilityCol()) == ("class", "p")
    trainer.setPredictionCol("prediction")
    assert (trainer.prediction_col, trainer.output_col) == ("prediction", "scores")
    assert trainer.extractParamMap()[trainer.predictionCol] == "prediction"
    trainer.clear(trainer.prediction_col_param)
    assert trainer.getOrDefault("predictionCol") == "scores"


@pytest.mark.parametrize(
    ("arguments", "logits"),
    [
        ({"loss": "binary_crossentropy"}, False),
        ({"loss": keras.losses.BinaryCrossentropy(from_logits=True)}, True),
        ({"loss": [keras.losses.BinaryCrossentropy(from_logits=True)], "from_logits": False}, False),
        ({"loss": lambda labels, outputs: outputs}, False),
        ({"loss": lambda labels, outputs: outputs, "from_logits": True}, True),
    ],
)
def test_the_loss_says_whether_outputs_are_logits(arguments, logits):
    assert hvdkeras.EASGD(model(), **arguments).gives_logits is logits
