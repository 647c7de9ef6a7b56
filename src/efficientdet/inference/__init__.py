"""Images -> Detections: post-processing, engines, the detector."""
