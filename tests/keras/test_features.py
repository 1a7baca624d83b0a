"""Every feature of TensorFlow's documents has a test, and the page that says so is up to date."""

import feature_table


def test_every_mark_names_a_feature():
    assert set(feature_table.covered()) <= feature_table.known()


def test_every_feature_has_a_test():
    missing = sorted(feature_table.known() - set(feature_table.covered()))
    assert missing == []


def test_the_page_is_up_to_date():
    assert feature_table.PAGE.read_text(encoding="utf-8") == feature_table.page()
