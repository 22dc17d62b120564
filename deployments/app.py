"""Builds the application that serve_config.yaml names.

Annotations are evaluated here: Serve reads that of `args` to know what to make of the configuration.
"""

from ray import serve
from ray.serve import Application

from deployments.ingress import Ingress
from deployments.preprocess import Preprocessor
from deployments.settings import AppArgs
from deployments.sound_classifier import SoundClassifier
from deployments.voice import VoiceRecognizer


def build(args: AppArgs) -> Application:
    """The serving graph.

    Replicas, processors, queues and autoscaling of each deployment are set in serve_config.yaml under `deployments`.
    """
    voice = serve.deployment()(VoiceRecognizer).bind(args.models)
    sounds = serve.deployment()(SoundClassifier).bind(args.models)
    preprocessor = serve.deployment()(Preprocessor).bind(args, voice, sounds)
    return serve.deployment()(Ingress).bind(preprocessor, voice, sounds, args)
