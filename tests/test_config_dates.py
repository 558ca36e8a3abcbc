import datetime

import pytest

from raysweep.config import ModelConfig
from raysweep.config_dates import parse_date


@pytest.mark.parametrize("text", ["2024-7-26", "20240726", "2024-W30-5", "2024-02-30", "2024-07-26T00:00", "", "today"])
def test_other_writings_of_a_date_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a date; write it as YYYY-MM-DD"):
        parse_date(text)
    assert parse_date("2024-02-29") == "2024-02-29"


def test_a_config_has_a_date_as_yaml_gives_it() -> None:
    for date in ("2024-07-26", datetime.date(2024, 7, 26)):
        assert ModelConfig(name="m", base="b", template_date=date).template_date == "2024-07-26"
    for wrong in (20240726, datetime.datetime(2024, 7, 26), 7.0, True, ["2024-07-26"], "July"):
        with pytest.raises(ValueError, match="template_date"):
            ModelConfig(name="m", base="b", template_date=wrong)
