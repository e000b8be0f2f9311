"""Weeks as ISO 8601 counts them, from the proleptic Gregorian calendar alone."""

MONTH_DAYS = (31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)


def leap(year: int) -> bool:
    return year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)


def day_of_year(year: int, month: int, day: int) -> int:
    """1 is the first of January."""
    return sum(MONTH_DAYS[: month - 1]) + day + (month > 2 and leap(year))


def weekday(year: int, month: int, day: int) -> int:
    """1 is Monday, 7 is Sunday."""
    before = year - 1
    return (before * 365 + before // 4 - before // 100 + before // 400 + day_of_year(year, month, day) - 1) % 7 + 1


def weeks_in(year: int) -> int:
    return 53 if weekday(year, 1, 1) == 4 or weekday(year, 12, 31) == 4 else 52


def week(year: int, month: int, day: int) -> tuple[int, int]:
    """The ISO year and week of a day."""
    number = (day_of_year(year, month, day) - weekday(year, month, day) + 10) // 7
    if number < 1:
        return year - 1, weeks_in(year - 1)
    return (year + 1, 1) if number > weeks_in(year) else (year, number)
