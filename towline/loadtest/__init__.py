"""Load on a service: asked by users who wait for their answers, or at a rate that waits for nobody."""
