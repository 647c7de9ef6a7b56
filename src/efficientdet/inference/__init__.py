"""Pictures -> Detections: post-processing, engines, the detector, drawing and video."""
