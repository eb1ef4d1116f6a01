"""The names in a PromQL query are found, so that a misspelt one in an alert or dashboard is."""

from support.promql import labels_shown, used_by


def test_metrics_are_found_with_the_labels_that_select_and_group_them() -> None:
    found = used_by(
        'sum by (instance, volume) (rate(iomesh_volume_reads_total{volume=~"db|wal", job!="x"}[5m]))'
        ' / on (instance) group_left (version) iomesh_node_info and up{job="iomesh"} == 1'
    )
    assert found.matched == {
        "iomesh_volume_reads_total": {"volume", "job"},
        "iomesh_node_info": set(),
        "up": {"job"},
    }
    assert found.grouped == {"instance", "volume", "version"}


def test_words_in_strings_and_functions_are_no_metrics() -> None:
    found = used_by('label_replace(iomesh_device_online{path="iomesh_nothing{a}"}, "up", "$1", "x", "process_y")')
    assert found.matched == {"iomesh_device_online": {"path"}}


def test_labels_that_texts_show_are_found() -> None:
    assert labels_shown("Volume {{ $labels.volume }} of {{ $value | humanize }}") == {"volume"}
    assert labels_shown("{{instance}} reactor {{reactor}}") == {"instance", "reactor"}
