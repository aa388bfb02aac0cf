"""CLIP-AD's representative vectors beside scikit-learn's algorithms."""

import numpy as np
import pytest
import torch
from sklearn.cluster import DBSCAN, MeanShift
from sklearn.decomposition import PCA
from sklearn.neighbors import KernelDensity
from torch.nn.functional import normalize

from vcp_clip_hf.methods.representative_vectors import REPRESENTATIVES, dbscan_labels, representative_vector


def prompts(seed, spread=0.4):
    """40 unit vectors around three directions, and 10 anywhere."""
    generator = torch.Generator().manual_seed(seed)
    centers = torch.randn(3, 8, generator=generator)[torch.arange(40) % 3]
    around = centers + spread * torch.randn(40, 8, generator=generator)
    return normalize(torch.cat([around, torch.randn(10, 8, generator=generator)]), dim=1)


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize(("eps", "min_samples"), [(0.3, 3), (0.5, 5), (0.6, 10), (1.5, 25)])
def test_clusters_are_those_of_scikit_learn(seed, eps, min_samples):
    for points in (prompts(seed), torch.randn(60, 2, generator=torch.Generator().manual_seed(seed))):
        expected = DBSCAN(eps=eps, min_samples=min_samples).fit(points.numpy()).labels_
        assert dbscan_labels(points, eps, min_samples).tolist() == expected.tolist()


def test_dbscan_takes_the_mean_of_the_largest_cluster_and_of_the_first_of_equal_ones():
    axes = torch.eye(4)[[0] * 4 + [1] * 6 + [2] * 6 + [3]]
    embeds = normalize(axes + 0.05 * torch.randn(17, 4, generator=torch.Generator().manual_seed(0)), dim=1)
    assert dbscan_labels(embeds, 0.5, 3).tolist() == [0] * 4 + [1] * 6 + [2] * 6 + [-1]
    expected = normalize(embeds[4:10].mean(dim=0), dim=0)
    torch.testing.assert_close(representative_vector(embeds, "dbscan", 0.5, 3), expected)


def test_dbscan_without_a_cluster_is_the_mean():
    embeds = prompts(1)
    mean = representative_vector(embeds, "mean")
    assert (dbscan_labels(embeds, 0.01, 15) == -1).all()
    torch.testing.assert_close(representative_vector(embeds, "dbscan", 0.01, 15), mean)
    # the authors' settings for VisA join everything in one half of the sphere
    one_side = normalize(embeds + 2 * mean, dim=1)
    assert (dbscan_labels(one_side, 1.5, 25) == 0).all()


def test_the_other_vectors_are_those_of_scikit_learn():
    embeds = prompts(2)
    points = embeds.double().numpy()
    density = np.exp(KernelDensity(kernel="gaussian", bandwidth=0.3).fit(points).score_samples(points))
    axis = PCA(n_components=1, svd_solver="full").fit_transform(points.T)[:, 0]
    expected = {
        "mean": points.mean(axis=0),
        "kde": (density[:, None] * points).sum(axis=0),
        "pca": axis * np.sign(axis @ points.mean(axis=0)),
        "mean_shift": MeanShift(bandwidth=2).fit(points).cluster_centers_[0],
    }
    assert {"dbscan", *expected} == set(REPRESENTATIVES)
    for kind, vector in expected.items():
        unit = torch.from_numpy(vector / np.linalg.norm(vector)).float()
        torch.testing.assert_close(representative_vector(embeds, kind), unit, atol=1e-5, rtol=0)


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="'median' must be one of 'dbscan', 'mean'"):
        representative_vector(prompts(0), "median")
