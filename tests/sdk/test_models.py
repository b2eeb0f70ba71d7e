"""Which models are served."""

import pytest
from openai import NotFoundError


def test_list_and_retrieve(client, target):
    models = client.models.list().data
    assert models
    for model in models:
        assert model.object == "model"
        assert client.models.retrieve(model.id) == model
    if target.answers:
        assert "tiny" in [model.id for model in models]


def test_unknown_model_is_not_found(client):
    with pytest.raises(NotFoundError):
        client.models.retrieve("no-such-model")
