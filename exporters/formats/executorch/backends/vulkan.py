"""Vulkan: the graphics processor of Android devices."""

from __future__ import annotations

from typing import Any

from executorch.backends.vulkan.partitioner.vulkan_partitioner import VulkanPartitioner

DIM_ORDER = False


def partitioner() -> Any:
    return VulkanPartitioner()
