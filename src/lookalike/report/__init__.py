"""Self-contained pages: of runs, searches, detections, segmentations and comparisons."""
