"""Which tree an answer is read into, and the sets of real numbers that trees describe."""

from __future__ import annotations

import pytest

from rewards.answers.reading import read
from rewards.answers.region import region, same_region
from rewards.answers.trees import Choice, Collection, Matrix, Ratio, Relation, Sequence, SetOperation


@pytest.mark.parametrize(
    ("answer", "kind", "num_items"),
    [
        ("(1, 2, 3)", Sequence, 3), ("[0, 1)", Sequence, 2), (r"\langle 1, 2 \rangle", Sequence, 2),
        ("P(5, -1)", Sequence, 2), (r"\{1, 2\}", Collection, 2), ("1, 2 and 3", Collection, 3),
        ("x = 1 or x = 2", Collection, 2), (r"3 \pm \sqrt{2}", Collection, 2), (r"\{1 \pm \sqrt5, -2\}", Collection, 3),
        ("1,250, 3,400", Collection, 2), (r"a=4,\,-8,\,-10", Collection, 3), ("2:3:4", Ratio, 3),
    ],
)
def test_items_are_found(answer: str, kind: type, num_items: int) -> None:
    node = read(answer)
    assert isinstance(node, kind)
    assert isinstance(node, (Sequence, Collection, Ratio))
    assert len(node.items) == num_items


@pytest.mark.parametrize(
    ("answer", "value"),
    [("1,250", "1250"), ("1,250,000", "1250000"), ("(5)", "5"), ("{5}", "5"), ("12^{th}", "12"), ("= 42", "42")],
)
def test_what_looks_like_structure_and_is_a_number(answer: str, value: str) -> None:
    assert read(answer) == read(value)


def test_matrices_take_their_factor_into_the_entries() -> None:
    assert read(r"\frac{1}{2}\begin{pmatrix} 2 & 4 \\ 6 & 8 \end{pmatrix}") == read(
        r"\begin{bmatrix} 1 & 2 \\ 3 & 4 \end{bmatrix}")
    node = read(r"\begin{pmatrix} 1 & 2 \\[4pt] 3 & 4 \\ \end{pmatrix}")
    assert isinstance(node, Matrix) and [len(row) for row in node.rows] == [2, 2]


def test_determinants_are_values() -> None:
    assert read(r"\begin{vmatrix} 2 & 1 \\ 1 & 2 \end{vmatrix}") == read("3")
    assert read(r"\begin{vmatrix} 1 & 2 & 3 \\ 4 & 5 & 6 \\ 7 & 8 & 10 \end{vmatrix}") == read("-3")


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("(B)", "b"),
        (r"\text{(B)}", "b"),
        ("B) 12", "b"),
        (r"\textbf{(B)}\ 12", "b"),
        ("**B)** 40%", "b"),
        ("option B", "b"),
    ],
)
def test_options_have_their_letter(answer: str, letter: str) -> None:
    node = read(answer)
    assert isinstance(node, Choice)
    assert node.letter == letter


@pytest.mark.parametrize("answer", ["(a)(b)", "(a+5)(b+2)", "f(x)", "A = 5", "B^2", "A_1"])
def test_products_and_names_are_no_options(answer: str) -> None:
    assert not isinstance(read(answer), Choice)


@pytest.mark.parametrize(("answer", "name"), [
    ("x = 5", "x"), ("f(x) = x^2", "f(x)"), ("a_{n} = 2n", "a_n"), (r"\angle ABC = 60", r"\angleABC"), ("AB = 5",
    "AB"), (r"\text{Area} = 5", "text"),
    ("(x, y) = (1, 2)", "(x,y)"), ("P(A) = 1/2", "P(A)"), ("2x = 5", None), ("x + y = 5", None), ("x^2 = 4", None),
])
def test_names_in_front_of_values(answer: str, name: str | None) -> None:
    node = read(answer)
    assert isinstance(node, Relation)
    assert node.names[0] == name


REGIONS = [
    ("[-2, 7]", r"-2 \le x \le 7", r"x \in [-2, 7]", "7 >= x >= -2"),
    (r"(-\infty, 2) \cup (3, \infty)", "x < 2 or x > 3", r"x<2 \text{ or } x>3", r"(3, \infty) \cup (-\infty, 2)",
    r"\mathbb{R} \setminus [2, 3]"),
    (r"\mathbb{R} \setminus \{1\}", r"(-\infty, 1) \cup (1, \infty)", r"x \neq 1", r"\{x \in \mathbb{R} : x \ne 1\}"),
    ("(-1, 1)", "|x| < 1", "-1 < x < 1", "x > -1 and x < 1"),
    (r"\emptyset", "no solution", r"\varnothing"),
    (r"\mathbb{R}", "all real numbers", r"(-\infty, \infty)"),
    (r"[0, 1] \cup [1, 2]", "[0, 2]", r"[0, 1) \cup [1, 2]"),
    (r"[0, 3] \cap [1, 5)", "[1, 3]"),
    (r"(\sqrt{2}, \pi]", r"\sqrt 2 < t \le \pi"),
    (r"(-2, 1) \cup (1, \infty)", r"x > -2, x \ne 1"),
]


def test_notations_of_one_set_describe_one_region_and_others_do_not() -> None:
    for i, group in enumerate(REGIONS):
        for j, other in enumerate(REGIONS):
            for first in group:
                for second in other:
                    one, two = region(read(first)), region(read(second))
                    assert one is not None and two is not None, (first, second)
                    assert same_region(one, two) == (i == j), (first, second)


@pytest.mark.parametrize("answer", ["(7, 3)", "(1, 2, 3)", "(a, b)", "1, 2", "x + y", "5", "(2i, 3)", "x < y"])
def test_points_lists_and_symbols_are_no_regions(answer: str) -> None:
    assert region(read(answer)) is None


def test_unions_of_symbolic_intervals_keep_their_parts() -> None:
    node = read(r"(-\infty, a) \cup (b, \infty)")
    assert isinstance(node, SetOperation)
    assert node.operation == "union"
