"""Pictures of schedules, images and losses, drawn with matplotlib (the extra ``plots``)."""

from ddpm_data.plots.curves import Curve, Panel, compare_curves, schedule_curves, schedule_sheet, timestep_losses
from ddpm_data.plots.images import Captioned, image_grids, noising_strip, samples_beside

__all__ = [
    "Captioned",
    "Curve",
    "Panel",
    "compare_curves",
    "image_grids",
    "noising_strip",
    "samples_beside",
    "schedule_curves",
    "schedule_sheet",
    "timestep_losses",
]
