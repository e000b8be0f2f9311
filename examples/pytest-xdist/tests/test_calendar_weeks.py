import datetime

import calendar_weeks
import pytest


@pytest.mark.parametrize("year", range(1990, 2030))
def test_every_day_agrees_with_the_library(year):
    day = datetime.date(year, 1, 1)
    while day.year == year:
        expected = day.isocalendar()
        assert calendar_weeks.week(day.year, day.month, day.day) == (expected.year, expected.week)
        assert calendar_weeks.weekday(day.year, day.month, day.day) == expected.weekday
        day += datetime.timedelta(days=1)


def test_long_years():
    assert [year for year in range(2000, 2030) if calendar_weeks.weeks_in(year) == 53] == [2004, 2009, 2015, 2020, 2026]
