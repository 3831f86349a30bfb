"""Channels: which filters go together, and layers without some of them."""

from dprp_tf.channels.following import Followed, LayerChannels, Resized, follow
from dprp_tf.channels.groups import (
    ChannelGroup,
    ChannelGroups,
    channel_groups,
    groups_of,
    place_labels,
)
from dprp_tf.channels.places import LayerPlaces, Places, places_of
from dprp_tf.channels.slicing import SlicedLayer, WeightCut, filter_rows, weight_cuts

__all__ = [
    "ChannelGroup",
    "ChannelGroups",
    "Followed",
    "LayerChannels",
    "LayerPlaces",
    "Places",
    "Resized",
    "SlicedLayer",
    "WeightCut",
    "channel_groups",
    "filter_rows",
    "follow",
    "groups_of",
    "place_labels",
    "places_of",
    "weight_cuts",
]
