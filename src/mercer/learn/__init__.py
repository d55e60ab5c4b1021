"""Learners: scikit-learn estimators that predict, with intervals or calibrated probabilities."""

from mercer.learn.cascade import PolyharmonicCascadeClassifier, PolyharmonicCascadeRegressor
from mercer.learn.classify import KernelClassifier
from mercer.learn.cluster import KernelKMeans, KernelSpectralClustering
from mercer.learn.conformal import LocalConformal
from mercer.learn.deepconv import ConvolutionalDeepKernelMachine
from mercer.learn.deepkernels import DeepKernelMachine, DeepKernelMachineClassifier
from mercer.learn.eigenpro import EigenProClassifier, EigenProRegressor
from mercer.learn.falkon import FalkonRegressor
from mercer.learn.interpolate import InterpolatedClassifier
from mercer.learn.latent import LatentVecchiaProcess
from mercer.learn.logodds import FalkonClassifier
from mercer.learn.margins import KernelMeanClassifier, KernelSVC
from mercer.learn.multitask import MultitaskGaussianProcess
from mercer.learn.neighbours import NeighbourRidge
from mercer.learn.novelty import KernelNovelty
from mercer.learn.options import explain
from mercer.learn.pca import KernelPCA
from mercer.learn.process import GaussianProcessRegressor
from mercer.learn.rfm import RecursiveFeatureClassifier, RecursiveFeatureMachine
from mercer.learn.ridge import KernelRidge
from mercer.learn.smoother import KernelSmootherClassifier, KernelSmootherRegressor
from mercer.learn.spectral import SpectralRegressor
from mercer.learn.transformed import TransformedKernelClassifier, TransformedKernelRidge
from mercer.learn.variational import VariationalGaussianProcess, VariationalGaussianProcessClassifier
from mercer.learn.vecchia import VecchiaGaussianProcess

__all__ = [
    "ConvolutionalDeepKernelMachine",
    "DeepKernelMachine",
    "DeepKernelMachineClassifier",
    "EigenProClassifier",
    "EigenProRegressor",
    "FalkonClassifier",
    "FalkonRegressor",
    "GaussianProcessRegressor",
    "InterpolatedClassifier",
    "KernelClassifier",
    "KernelKMeans",
    "KernelMeanClassifier",
    "KernelNovelty",
    "KernelPCA",
    "KernelRidge",
    "KernelSVC",
    "KernelSmootherClassifier",
    "KernelSmootherRegressor",
    "KernelSpectralClustering",
    "LatentVecchiaProcess",
    "LocalConformal",
    "MultitaskGaussianProcess",
    "NeighbourRidge",
    "PolyharmonicCascadeClassifier",
    "PolyharmonicCascadeRegressor",
    "RecursiveFeatureClassifier",
    "RecursiveFeatureMachine",
    "SpectralRegressor",
    "TransformedKernelClassifier",
    "TransformedKernelRidge",
    "VariationalGaussianProcess",
    "VariationalGaussianProcessClassifier",
    "VecchiaGaussianProcess",
    "explain",
]
